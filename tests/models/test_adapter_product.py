"""The change of a layer by an adapter is that of peft's merge, however the layer stores its weight."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from stages.models.adapter_folder import ADAPTER_WEIGHTS, read_adapter
from stages.models.adapter_product import PREFIX, magnitude_names, weight_change

COLUMNS = {"fan_in_fan_out": True, "target_modules": ["c_attn", "attn.c_proj"]}  # one is square


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=2, pad_token_id=0)
    )


def factor_of(tensors: dict[str, torch.Tensor], module: str, letter: str) -> torch.Tensor:
    names = [f"{PREFIX}{module}.lora_{letter}.weight", f"{PREFIX}{module}.lora_embedding_{letter}"]
    [name] = [name for name in names if name in tensors]
    return tensors[name]


@pytest.mark.parametrize(
    "changes",
    [
        COLUMNS,
        COLUMNS | {"use_dora": True},
        {"target_modules": ["wte"]},
        {"target_modules": ["wte"], "use_dora": True},
        {"target_modules": ["lm_head"], "use_dora": True, "use_rslora": True},
    ],
)
def test_the_change_of_a_layer_is_that_of_pefts_merge(changes: Any, tmp_path: Path) -> None:
    config = LoraConfig(
        r=2, lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **changes
    )
    model = get_peft_model(gpt2(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.3)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    adapter, tensors = read_adapter(tmp_path), load_file(tmp_path / ADAPTER_WEIGHTS)
    before = {name: each.clone() for name, each in gpt2().state_dict().items()}
    after = model.merge_and_unload().state_dict()
    assert adapter.factors
    for module in adapter.factors:
        first, second = (factor_of(tensors, module, letter) for letter in "AB")
        magnitudes = [tensors[name] for name in magnitude_names(module) if name in tensors]
        assert bool(magnitudes) == bool(changes.get("use_dora"))
        weight = before[f"{module}.weight"]
        change = weight_change(adapter, module, first, second, weight, *(magnitudes or [None]))
        assert torch.allclose(change, after[f"{module}.weight"] - weight, atol=1e-6)
