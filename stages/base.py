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
from stages.models import merging, rounding
from stages.models.adapter_folder import ADAPTER_WEIGHTS
from stages.models.base_licence import KEYS, publish_licence, read_licence
from stages.models.hub import download_model
from stages.models.loading import (
    OTHER_WEIGHTS,
    Loaded,
    first_not_finite,
    load_config,
    load_gguf,
    load_model,
    load_tokenizer,
    require_finite_files,
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
    """Publish `model/`: random weights, or those of a folder, a GGUF file or the hub, with any adapter merged."""
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
    rowless_tokens = tokens_without_row(tokenizer, model.get_input_embeddings().num_embeddings)
    if rowless_tokens:
        out.warn(
            f"{cfg.key}={cfg.path}: the embedding has no row for {len(rowless_tokens)} tokens, as {', '.join(rowless_tokens[:5])}. SFT "
            "adds rows and trains them."
        )
    save_model(model, out / "model")
    rounded_share = rounding.round_model(out / "model") if cfg.dtype else 0.0
    if rounded_share:
        out.warn(
            f"model.dtype={cfg.dtype}: {rounded_share:.1%} of the weights are not exact, and are rounded."
        )
    tokenizer.save_pretrained(out / "model")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    architecture = type(model).__name__
    metrics = {
        "parameters": parameters,
        "vocabulary": len(tokenizer),
        "architecture": architecture,
        "summary": f"{parameters / 1e6:.1f} M parameters, {architecture}",
    }
    if place:
        licence = read_licence(place) if place.is_dir() else read_gguf_licence(place)
        publish_licence(licence, place, out / "model")
        metrics |= stored_weight_type(place)
    return metrics


def read_folder(folder: Path, cfg: Model, out: StageDir) -> Loaded:
    """Load model and tokenizer from a Hugging Face folder of safetensors.
    Raise UserError if tensors of other parts than text would be lost."""
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{cfg.key}={cfg.path}: {folder} has no *.safetensors. Convert the weights."
        )
    tokenizer = load_tokenizer(folder)
    # loading the weights may take minutes
    validate_chat_template(tokenizer, f"{cfg.key}={cfg.path}")
    require_finite_files(folder)
    model = load_model(folder)
    unloaded = unloaded_tensors(folder, model)
    if unloaded:
        problem = f"{cfg.key}={cfg.path}: {len(unloaded)} tensors are not loaded, as {', '.join(unloaded[:3])}"
        config = load_config(folder)
        has_other_parts = config.get_text_config() is not config
        if has_other_parts:
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
    require_finite_files(folder)
    merged = merging.merge_adapter(model, folder, f"{cfg.adapter_key}={cfg.adapter}")
    (out / "adapter").mkdir(exist_ok=True)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copyfile(folder / name, out / "adapter" / name)
    return merged, tokenizer


def read_gguf(file: Path, cfg: Model) -> Loaded:
    """Load weights, dequantised to fp32, and tokenizer of a GGUF file. Raise UserError if it cannot be read, or scales
    the rotary positions in a way that is not read."""
    try:
        model, tokenizer = load_gguf(file)
    except Exception as error:  # a damaged or unknown file may raise any exception
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{cfg.key}={cfg.path}: cannot be read as GGUF: {reason}") from error
    fault = first_not_finite(model.named_parameters())
    if fault:
        raise UserError(f"{cfg.key}={cfg.path}: {fault}. {OTHER_WEIGHTS}")
    scaling_entry = rope_scaling_entry(file)
    if scaling_entry and model.config.rope_parameters.get("rope_type") == "default":
        raise UserError(
            f"{cfg.key}={cfg.path}: {scaling_entry} scales the rotary positions, which is not read. Use safetensors."
        )
    validate_chat_template(tokenizer, f"{cfg.key}={cfg.path}")
    # The weights are fp32 tensors now, but the config still says quantised, which save_pretrained refuses.
    model.hf_quantizer.remove_quantization_config(model)
    return model, tokenizer


def stored_weight_type(place: Path) -> dict[str, str]:
    """Return, as a metric, the type of the first tensor in a folder's safetensors; {} for a single file."""
    for file in sorted(place.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for tensor_name in tensors.keys():  # noqa: SIM118  # it has no iterator
                return {"stored": str(tensors.get_slice(tensor_name).get_dtype())}
    return {}


def rope_scaling_entry(file: Path) -> str | None:
    """Return the first tensor or key by which a GGUF file scales rotary positions; None if it has none."""
    metadata, tensor_names = read_gguf_metadata(str(file))
    for tensor_name in tensor_names:
        if tensor_name.startswith(("rope_freqs", "rope_factors")):
            return str(tensor_name)
    for key, value in metadata.items():
        if key.endswith("rope.scaling.type") and value != "none":
            return str(key)
    return None


def read_gguf_licence(file: Path) -> dict[str, Any]:
    """Return the licence in the metadata of a GGUF file, under the keys of a card."""
    metadata, _ = read_gguf_metadata(str(file))
    stored_keys = {key: f"general.{key.replace('_', '.')}" for key in KEYS}
    return {
        key: metadata[stored_key]
        for key, stored_key in stored_keys.items()
        if stored_key in metadata
    }


def build_random_model(cfg: RandomInit) -> Loaded:
    """Return a small Llama with random weights, and a byte-level BPE tokenizer trained on generated instructions."""
    examples = generate(cfg.seed, {"sft": 400}, families=[])
    corpus = [message["content"] for example in examples for message in example.conversation]
    byte_level_bpe = Tokenizer(models.BPE())
    byte_level_bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level_bpe.decoder = decoders.ByteLevel()
    byte_level_bpe.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=cfg.vocab_size,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe, eos_token="<|endoftext|>")
    torch.manual_seed(cfg.seed)
    config = LlamaConfig(
        **cfg.config_json | {"vocab_size": len(tokenizer)},
        # wide enough for training an adapter on these weights
        initializer_range=cfg.hidden_size**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config), tokenizer
