"""Published weights in bfloat16: half the disk, one type from base to policy, and the share of the update that is left."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from stages.models import rounding
from stages.models.loading import load_model
from tests.helpers import Chain, build

HALF = ("model.dtype=bfloat16", "stage=dpo")


def test_a_run_publishes_one_type_and_trains_from_what_is_published(
    built: Path, tmp_path: Path
) -> None:
    build(tmp_path, *HALF)
    half = [Chain(tmp_path).folder(stage, *HALF) for stage in ("base", "sft", "dpo")]
    exact = load_file(Chain(built).folder("base") / "model" / "model.safetensors")
    base, *trained = (load_file(node / "model" / "model.safetensors") for node in half)
    for name, weight in base.items():
        assert torch.equal(weight, exact[name].bfloat16())
    for weights in trained:
        assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
        assert any(not torch.equal(weights[name], base[name]) for name in base)
    for node in half:
        assert json.loads((node / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    metrics = [json.loads((node / "manifest.json").read_text())["metrics"] for node in half[1:]]
    assert all(0 < each["surviving_update"] < 1 for each in metrics)
    assert metrics[1]["step_0_gap"] <= 1e-5  # the reference and DPO read the same rounded model
    assert "| surviving_update |" in (half[2] / "model" / "README.md").read_text()


def test_an_update_survives_where_the_rounded_weight_differs(tmp_path: Path) -> None:
    """Beside 1, bfloat16 has 1 + 1/128: 0.3 of that step is lost, 0.7 of it is rounded up. New rows do not count."""
    start, model = tmp_path / "start", tmp_path / "model"
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, vocab_size=10)
    weights = LlamaForCausalLM(config)
    for weight in weights.parameters():
        torch.nn.init.ones_(weight)
    weights.save_pretrained(start)
    with torch.no_grad():
        weights.model.norm.weight[:3] += torch.tensor([0.3, 0.7, 0.7]) / 128
    weights.resize_token_embeddings(12)
    weights.save_pretrained(model, max_shard_size="2KB")
    exact = {file.name: load_file(file) for file in model.glob("*.safetensors")}
    (tmp_path / "links").mkdir()
    for name in exact:
        os.link(model / name, tmp_path / "links" / name)

    assert rounding.round_update(model, start) == pytest.approx(2 / 3)
    assert len(exact) > 1 and rounding.is_rounded(model) and not rounding.is_rounded(start)
    index = json.loads((model / "model.safetensors.index.json").read_text())
    count = sum(p.numel() for p in weights.parameters())
    assert index["metadata"] == {"total_parameters": count, "total_size": 2 * count}
    read = load_model(model).state_dict()
    for name, weight in weights.state_dict().items():
        assert torch.equal(read[name], weight.bfloat16().float())
    for name, tensors in exact.items():  # what a file is linked to stays exact
        linked = load_file(tmp_path / "links" / name)
        assert all(torch.equal(linked[key], tensors[key]) for key in tensors)
