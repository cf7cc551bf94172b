"""Low-rank adapters (LoRA, arXiv:2106.09685; over 4-bit weights QLoRA, arXiv:2305.14314) with peft.

A training stage trains an adapter over frozen weights and publishes the merged model. Later stages and servers read a
plain model folder, and cannot forget the adapter."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from stages.config.blocks.objective import LoRA, Training
from stages.config.choices import Adapter, Weights
from stages.config.errors import UserError
from stages.models.loading import load_adapter
from stages.models.merging import merge_adapter
from stages.store import safe_files
from stages.store.source_files import ADAPTER_CONFIG

ALL_LINEAR = "all-linear"
AnyModel: TypeAlias = PreTrainedModel | PeftModel  # without and with an adapter


def apply_adapter(
    model: PreTrainedModel,
    cfg: Training,
    task: str = "CAUSAL_LM",
    before: Path | None = None,
    new_tokens: Sequence[int] = (),
) -> AnyModel:
    """Return the model as `adapter` sets it: all weights trained, a new adapter on top, or the adapter in the folder
    `before` continued. None of these changes the outputs before the first step. `new_tokens` as of
    `attach_new_adapter`."""
    if cfg.adapter is Adapter.none:
        return model
    if cfg.adapter is Adapter.continued and before:
        return read_head_of_rows(load_adapter(model, before, trainable=True))
    return attach_new_adapter(model, cfg.lora, cfg.seed, task, new_tokens)


def attach_new_adapter(
    model: PreTrainedModel,
    cfg: LoRA,
    seed: int,
    task: str = "CAUSAL_LM",
    new_tokens: Sequence[int] = (),
) -> PeftModel:
    """Put a new adapter on the model. Its second factor starts at zero, so outputs do not change yet. With the task
    SEQ_CLS, the whole reward head is trained too. Of embedding and output layer, the rows of `new_tokens` are trained.
    Raise UserError if the model has no layer that `target_modules` names, or if one is an embedding or the output
    layer: the losses read the latter's frozen weights, and both may be one, so the merged model would be another."""
    torch.manual_seed(seed)
    all_linear = cfg.target_modules == [ALL_LINEAR]
    modules = ALL_LINEAR if all_linear else list(cfg.target_modules)
    rows = None
    if new_tokens:
        rows = {name: list(new_tokens) for name in embedding_names(model)}
    has_bias = new_tokens and model.get_output_embeddings().bias is not None
    config = LoraConfig(
        task_type=task,
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        target_modules=modules,
        trainable_token_indices=rows,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"lora.target_modules={cfg.target_modules}: {reason} Name the layers, as [q_proj, v_proj]."
        ) from error
    if any(hasattr(layer, "base_layer") for layer in embeddings(model)):
        raise UserError(
            f"lora.target_modules={cfg.target_modules}: embedding and output layer cannot be adapted."
        )
    # peft refuses only a list of which no name is there
    absent = list[str]()
    if not all_linear:
        absent = absent_layers(adapted.targeted_module_names, cfg.target_modules)
    if absent:
        raise UserError(
            f"lora.target_modules={cfg.target_modules}: the model has no layer {' or '.join(absent)}."
        )
    # peft's layer leaves out a bias, and might not follow a tied output layer
    if new_tokens and (has_bias or not all(e.weight.requires_grad for e in embeddings(model))):
        problem = f"peft cannot train rows of a {type(model).__name__}'s output layer"
        raise UserError(
            f"sft.adapter=lora: {problem}, and {len(new_tokens)} tokens need new ones. Set sft.adapter=none."
        )
    return read_head_of_rows(adapted)  # type: ignore[arg-type]


def absent_layers(found: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the names that no layer's ends with."""
    ends = tuple(f".{layer}" for layer in found)
    absent = list[str]()
    for name in names:
        if not any(end.endswith(f".{name}") for end in ends):
            absent.append(name)
    return absent


def embeddings(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the embedding and the output layer."""
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def embedding_names(model: PreTrainedModel) -> list[str]:
    """Return the names of embedding and output layer. An output layer that is tied follows the embedding."""
    layers = embeddings(model)
    if layers[0].weight is layers[1].weight:
        layers = layers[:1]
    ids = {id(layer) for layer in layers}
    return [name for name, module in model.named_modules() if id(module) in ids]


def read_head_of_rows(model: PeftModel) -> PeftModel:
    """Let the fused LM head read an output layer of which rows are trained: peft's layer around it shows no bias."""
    head = model.get_base_model().get_output_embeddings()
    if head is not None and not hasattr(head, "bias"):
        head.bias = None
    return model


def cast_trained_to_fp32(model: PeftModel) -> None:
    """Cast trained parameters to fp32. TRL casts an adapter over 4-bit weights to bf16: small updates would vanish."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merge_trained(
    model: PreTrainedModel, weights: Weights, adapter: Path, cfg: Training
) -> PreTrainedModel:
    """Return the model with the adapter of a training added to its weights. 4-bit weights are dequantised to fp32 first.
    Raise UserError as `merge_adapter` does."""
    if weights is Weights.nf4:
        model = model.dequantize(torch.float32)
    key = f"{cfg.block}.adapter={cfg.adapter}"
    way_out = f"To train all weights, type {cfg.block}.adapter=none"
    return merge_adapter(model, adapter, key, way_out)


def normalize_adapter_config(adapter: Path, frozen: Path) -> None:
    """Make adapter_config.json equal on every machine: sort the modules, and name the base model by its place in the
    store, STAGE/FINGERPRINT/model, in place of peft's path."""
    file = adapter / ADAPTER_CONFIG
    content = json.loads(file.read_text(encoding="utf-8")) | {
        "base_model_name_or_path": "/".join(frozen.parts[-3:])
    }
    # peft writes a set, whose order differs between processes
    if isinstance(content["target_modules"], list):
        content["target_modules"].sort()
    file.unlink()  # the file may be a hard link, and the trained adapter must not change
    safe_files.write(file, json.dumps(content, indent=2, sort_keys=True))
