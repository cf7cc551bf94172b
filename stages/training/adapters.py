"""Low-rank adapters (LoRA, arXiv:2106.09685; over 4-bit weights QLoRA, arXiv:2305.14314) by peft.

A training stage trains an adapter over frozen weights and publishes the merged model. Whatever comes next (sampling,
the reference of DPO, another adapter, a server) reads a plain model folder, and cannot forget the adapter.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from stages.config.blocks.training import LoRA, Training
from stages.config.choices import Adapter, Weights
from stages.config.errors import UserError
from stages.models.loading import load_adapter
from stages.store import safe_files

ALL_LINEAR = "all-linear"


def apply_adapter(
    model: PreTrainedModel, cfg: Training, task: str = "CAUSAL_LM", before: Path | None = None
) -> PreTrainedModel | PeftModel:
    """Return the model as `adapter` has it trained: all its weights, a fresh adapter over them, or the adapter in the
    folder `before` over the weights below it. Before the first step each of these computes the same."""
    if cfg.adapter is Adapter.none:
        return model
    if cfg.adapter is Adapter.continued and before:
        return load_adapter(model, before, trainable=True)
    return attach_new_adapter(model, cfg.lora, cfg.seed, task)


def attach_new_adapter(model: PreTrainedModel, cfg: LoRA, seed: int, task: str = "CAUSAL_LM") -> PeftModel:
    """Put a fresh adapter over the model. It changes no output yet, because its second factor starts at zero. By the
    task SEQ_CLS, the head is trained whole beside it.

    Raises:
        UserError: where the model has none of the layers that `target_modules` names.
    """
    torch.manual_seed(seed)
    modules = ALL_LINEAR if cfg.target_modules == [ALL_LINEAR] else list(cfg.target_modules)
    config = LoraConfig(task_type=task, r=cfg.rank, lora_alpha=cfg.alpha, target_modules=modules)
    try:
        return get_peft_model(model, config)  # type: ignore[return-value]
    except ValueError as error:
        raise UserError(f"lora.target_modules={cfg.target_modules}: {' '.join(str(error).split())[:200]}") from error


def cast_trained_to_fp32(model: PeftModel) -> None:
    """Put what is trained back into fp32: TRL casts an adapter over 4-bit weights to bf16: updates would vanish."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merge_adapter(model: PreTrainedModel, weights: Weights, adapter: Path) -> PreTrainedModel:
    """The model with the adapter added to its weights; 4-bit weights are dequantised to fp32 before that."""
    if weights is Weights.nf4:
        model = model.dequantize(torch.float32)
    return load_adapter(model, adapter).merge_and_unload(safe_merge=True)


def normalize_adapter_config(adapter: Path, frozen: Path) -> None:
    """Have adapter_config.json say the same on every machine: the model below the adapter is named by its place in the
    store, STAGE/FINGERPRINT/model, where peft wrote a path, and the modules stand in order."""
    file = adapter / "adapter_config.json"
    content = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": "/".join(frozen.parts[-3:])}
    if isinstance(content["target_modules"], list):  # peft's is a set, in another order in every process
        content["target_modules"].sort()
    file.unlink()  # it may be a hard link to the trained adapter's, which stays as it is
    safe_files.write(file, json.dumps(content, indent=2, sort_keys=True))
