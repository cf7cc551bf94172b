"""Stage `base`: publish the pretrained model and its tokenizer as a plain Hugging Face folder of safetensors.

The source is a hub id, a local folder, a GGUF file (dequantised once), or random weights (`model=tiny`)."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.integrations.gguf.reader import read_gguf_metadata

from stages.config.blocks.models import Model, RandomInit
from stages.config.errors import UserError
from stages.models import rounding
from stages.models.base_licence import KEYS, publish_licence, read_licence
from stages.models.hub import download_model
from stages.models.loading import (
    Loaded,
    load_adapter,
    load_config,
    load_gguf,
    load_model,
    load_tokenizer,
    save_model,
    tokens_without_row,
    unloaded_tensors,
)
from stages.models.rendering import validate_chat_template
from stages.store.plugins import user_path
from stages.store.source_files import ADAPTER_CONFIG, locate
from stages.store.workspace import StageDir
from stages.tasks.generator import generate


def run(cfg: Model, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `model/`. Raise UserError if the weights cannot be loaded, or are not those of `model.path`."""
    place = None
    if cfg.random_init:
        model, tokenizer = build_random_model(cfg.random_init)
    else:
        place = locate(str(cfg.path), cfg.key) or download_model(str(cfg.path), cfg.revision)
        if place.is_dir():
            model, tokenizer = read_folder(place, cfg, out)
        else:
            model, tokenizer = read_gguf(place, cfg)
    if cfg.adapter:
        model, tokenizer = merge_adapter(model, tokenizer, cfg, out)
    rowless = tokens_without_row(tokenizer, model.get_input_embeddings().num_embeddings)
    if rowless:
        out.warn(
            f"{cfg.key}={cfg.path}: the embedding has no row for {len(rowless)} tokens, as {', '.join(rowless[:5])}. SFT "
            "adds rows and trains them."
        )
    save_model(model, out / "model")
    share = rounding.round_model(out / "model") if cfg.dtype else 0.0
    if share:
        out.warn(
            f"model.dtype={cfg.dtype}: {share:.1%} of the weights are not exact, and are rounded."
        )
    tokenizer.save_pretrained(out / "model")
    parameters = sum(p.numel() for p in model.parameters())
    name = type(model).__name__
    metrics = {
        "parameters": parameters,
        "vocabulary": len(tokenizer),
        "architecture": name,
        "summary": f"{parameters / 1e6:.1f} M parameters, {name}",
    }
    if place:
        licence = read_licence(place) if place.is_dir() else read_gguf_licence(place)
        publish_licence(licence, place, out / "model")
        metrics |= stored_type(place)
    return metrics


def read_folder(folder: Path, cfg: Model, out: StageDir) -> Loaded:
    """Load model and tokenizer from a Hugging Face folder; never from pickled weights.
    Raise UserError for a model of text and images whose text part alone can be trained."""
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{cfg.key}={cfg.path}: {folder} has no *.safetensors. Convert the weights."
        )
    tokenizer = load_tokenizer(folder)
    # loading the weights may take minutes
    validate_chat_template(tokenizer, f"{cfg.key}={cfg.path}")
    model = load_model(folder)
    lost = unloaded_tensors(folder, model)
    if lost:
        problem = (
            f"{cfg.key}={cfg.path}: {len(lost)} tensors are not loaded, as {', '.join(lost[:3])}"
        )
        config = load_config(folder)
        if config.get_text_config() is not config:
            raise UserError(f"{problem}. Give a checkpoint of text alone.")
        out.warn(f"{problem}, and not published.")
    return model, tokenizer


def merge_adapter(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cfg: Model, out: StageDir
) -> Loaded:
    """Return the model with an adapter merged into its weights, and the tokenizer beside the adapter, if there is one.
    Publish a copy of the adapter as `adapter/`."""
    folder = user_path(str(cfg.adapter))
    if (folder / "tokenizer_config.json").exists():
        tokenizer = load_tokenizer(folder, adapter=True)
        validate_chat_template(tokenizer, f"{cfg.key}={cfg.adapter}")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    merged: Any = load_adapter(model, folder).merge_and_unload()
    (out / "adapter").mkdir(exist_ok=True)
    for name in (ADAPTER_CONFIG, "adapter_model.safetensors"):
        shutil.copyfile(folder / name, out / "adapter" / name)
    return merged, tokenizer


def read_gguf(file: Path, cfg: Model) -> Loaded:
    """Load weights, dequantised to fp32, and tokenizer of a GGUF file."""
    try:
        model, tokenizer = load_gguf(file)
    except Exception as error:  # a damaged or unknown file may raise any exception
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{cfg.key}={cfg.path}: cannot be read as GGUF: {reason}") from error
    scaling = unread_scaling(file)
    if scaling and model.config.rope_parameters.get("rope_type") == "default":
        raise UserError(
            f"{cfg.key}={cfg.path}: {scaling} scales the rotary positions, which is not read. Use safetensors."
        )
    validate_chat_template(tokenizer, f"{cfg.key}={cfg.path}")
    # The weights are fp32 tensors now, but the config still says quantised, which save_pretrained refuses.
    model.hf_quantizer.remove_quantization_config(model)
    return model, tokenizer


def stored_type(place: Path) -> dict[str, str]:
    """Return the type of the weights in a folder's files as a metric, that of the first; {} for another file."""
    for file in sorted(place.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it has no iterator
                return {"stored": str(tensors.get_slice(name).get_dtype())}
    return {}


def unread_scaling(file: Path) -> str | None:
    """Return the first entry by which a GGUF file scales rotary positions, as Llama 3.1's do; None if it has none."""
    metadata, tensor_names = read_gguf_metadata(str(file))
    for name in tensor_names:
        if name.startswith(("rope_freqs", "rope_factors")):
            return str(name)
    for key, kind in metadata.items():
        if key.endswith("rope.scaling.type") and kind != "none":
            return str(key)
    return None


def read_gguf_licence(file: Path) -> dict[str, Any]:
    """Return the licence in the metadata of a GGUF file, under the keys of a card."""
    metadata, _ = read_gguf_metadata(str(file))
    keys = {key: f"general.{key.replace('_', '.')}" for key in KEYS}
    return {key: metadata[stored] for key, stored in keys.items() if stored in metadata}


def build_random_model(cfg: RandomInit) -> Loaded:
    """Return a small Llama with random weights, and a byte-level BPE tokenizer trained on generated instructions."""
    examples = generate(cfg.seed, {"sft": 400}, families=[])
    corpus = [message["content"] for e in examples for message in e.conversation]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=cfg.vocab_size,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    torch.manual_seed(cfg.seed)
    config = LlamaConfig(
        **cfg.config_json | {"vocab_size": len(tokenizer)},
        # wide enough for training an adapter on these weights
        initializer_range=cfg.hidden_size**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config), tokenizer
