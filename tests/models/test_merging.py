"""Tests of merging: whatever peft trains, the model that is read from the disk computes what its adapter did."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from stages.config.errors import UserError
from stages.models.loading import load_model, save_model
from stages.models.merging import merge_adapter
from stages.store.source_files import ADAPTER_CONFIG

ROWS = 160
IDS = torch.arange(3, 40)[None]
SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.1,
}
TIED = LlamaConfig(**SIZES, tie_word_embeddings=True)
UNTIED = LlamaConfig(**SIZES, tie_word_embeddings=False)
WITH_BIAS = Qwen2Config(**SIZES, tie_word_embeddings=True)
EXPERTS = MixtralConfig(**SIZES, num_local_experts=2)
SHARED: dict[str, Any] = {"ensure_weight_tying": True}
NEW = [5, 6, 7]


def make_adapter(config: PretrainedConfig, root: Path, **lora: Any) -> torch.Tensor:
    """Save a model, and an adapter as peft writes it. Return the logits of both together."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(root / "base")
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of each kind that it cannot save as it is
        adapted = get_peft_model(model, LoraConfig(**fields | lora))
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight) * 0.1)
        adapted.save_pretrained(root / "adapter")
    return logits(adapted.eval())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("config", "lora", "stays_tied"),
    [
        (TIED, {"use_rslora": True}, True),
        (TIED, {"use_dora": True}, True),
        (TIED, {"target_modules": "all-linear"}, True),
        (TIED, {"target_modules": ["q_proj", "embed_tokens"]}, False),
        (TIED, {"target_modules": ["embed_tokens"], "use_dora": True}, False),
        (TIED, {"target_modules": ".*(v_proj|lm_head)"}, False),
        (TIED, {"target_modules": ["embed_tokens", "lm_head"]}, False),
        (TIED, {"target_modules": ["q_proj", "embed_tokens"]} | SHARED, True),
        (TIED, {"modules_to_save": ["embed_tokens"]}, False),
        (TIED, {"modules_to_save": ["lm_head"]}, False),
        (TIED, {"modules_to_save": ["embed_tokens"]} | SHARED, True),
        (TIED, {"trainable_token_indices": NEW}, True),
        (TIED, {"trainable_token_indices": {"lm_head": NEW}}, False),
        (TIED, {"trainable_token_indices": {"embed_tokens": NEW, "lm_head": [9]}}, False),
        (UNTIED, {"target_modules": ["embed_tokens"]}, False),
        (WITH_BIAS, {"lora_bias": True}, True),
        (WITH_BIAS, {"bias": "all"}, True),
        (EXPERTS, {"target_modules": "all-linear"}, False),
    ],
)
def test_the_merged_model_computes_what_its_adapter_did(
    config: PretrainedConfig, lora: dict[str, Any], stays_tied: bool, tmp_path: Path
) -> None:
    expected = make_adapter(config, tmp_path, **lora)
    merged = merge_adapter(load_model(tmp_path / "base"), tmp_path / "adapter", "model.adapter=A")
    save_model(merged, tmp_path / "merged")
    published = load_model(tmp_path / "merged")
    assert (logits(published) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert published.config.tie_word_embeddings is stays_tied


def test_a_bias_without_a_place_is_refused_by_file_layer_and_model(tmp_path: Path) -> None:
    make_adapter(TIED, tmp_path, lora_bias=True)
    with pytest.raises(UserError) as refused:
        merge_adapter(load_model(tmp_path / "base"), tmp_path / "adapter", "model.adapter=A")
    line = str(refused.value)
    assert line.startswith("model.adapter=A: ") and "\n" not in line
    for part in (str(tmp_path / "adapter" / ADAPTER_CONFIG), "q_proj", str(tmp_path / "base")):
        assert part in line
    assert "lora_bias=false" in line


def test_a_merged_model_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A future version of peft merges a matrix with half of its scale."""
    make_adapter(TIED, tmp_path)
    right_delta = Linear.get_delta_weight

    def half_delta(layer: Linear, adapter: str) -> torch.Tensor:
        return right_delta(layer, adapter) / 2

    monkeypatch.setattr(Linear, "get_delta_weight", half_delta)
    with pytest.raises(UserError) as refused:
        merge_adapter(load_model(tmp_path / "base"), tmp_path / "adapter", "model.adapter=A")
    line = str(refused.value)
    assert line.startswith("model.adapter=A: ") and str(tmp_path / "base") in line
    assert "0.001" in line and "model.path=" in line
