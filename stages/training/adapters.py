"""Low-rank adapters (LoRA, arXiv:2106.09685; over 4-bit weights QLoRA, arXiv:2305.14314) by peft.

An adapter is trained over frozen weights and published merged, so that whatever comes next (sampling, the reference of
DPO, another adapter, a server) reads a plain model folder and can never see the weights without it.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from stages.config.choices import Weights
from stages.config.errors import UserError
from stages.config.schema import LoRA

ALL_LINEAR = "all-linear"


def attach(model: PreTrainedModel, cfg: LoRA, seed: int) -> PeftModel:
    """A fresh adapter, which changes nothing yet: its second factor is zero.

    Raises:
        UserError: where the model has no such layers.
    """
    torch.manual_seed(seed)
    modules = ALL_LINEAR if cfg.target_modules == [ALL_LINEAR] else list(cfg.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        target_modules=modules,
    )
    try:
        return get_peft_model(model, config)  # type: ignore[return-value]
    except ValueError as error:
        raise UserError(f"lora.target_modules={cfg.target_modules}: {' '.join(str(error).split())[:200]}") from error


def attach_trained(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """An adapter that was trained over these weights, to be trained on."""
    return PeftModel.from_pretrained(model, adapter, is_trainable=True)  # type: ignore[no-any-return]


def keep_fp32(model: PeftModel) -> None:
    """TRL rounds the adapter to bf16 over 4-bit weights; small updates would be lost then."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merge(model: PreTrainedModel, held: Weights, adapter: Path) -> PreTrainedModel:
    """The adapter added to the weights it was trained over: of 4-bit ones, to what they stand for in fp32."""
    if held is Weights.nf4:
        model = model.dequantize(torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)


def name_lower(adapter: Path, frozen: Path) -> None:
    """Have the adapter say what it lies on by its place in the store, STAGE/FINGERPRINT/model, where peft wrote a path
    of this machine."""
    file = adapter / "adapter_config.json"
    content = json.loads(file.read_text()) | {"base_model_name_or_path": "/".join(frozen.parts[-3:])}
    file.unlink()  # a hard link, maybe
    file.write_text(json.dumps(content, indent=2, sort_keys=True))
