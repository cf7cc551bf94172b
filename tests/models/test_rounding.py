"""Published weights in bfloat16: half the disk, one type from base to policy, and the share of the update that is left."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from stages.models import rounding
from stages.models.loading import load_model
from tests.helpers import Chain, build, refused

HALF = ("model.dtype=bfloat16", "stage=dpo")


@pytest.fixture(scope="module", params=["none", "lora"])
def half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the published base, SFT model and policy, in bfloat16."""
    root = tmp_path_factory.mktemp(request.param)
    keys = (*HALF, f"sft.adapter={request.param}", f"dpo.adapter={request.param}")
    build(root, *keys)
    return [Chain(root).folder(stage, *keys) for stage in ("base", "sft", "dpo")]


def test_a_run_publishes_one_type_and_trains_from_what_is_published(
    half: list[Path], built: Path
) -> None:
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
    assert metrics[1]["surviving_update"] == pytest.approx(
        float(card_figure(half[2] / "model" / "README.md", "surviving_update")), abs=1e-3
    )


def card_figure(card: Path, name: str) -> str:
    [line] = [line for line in card.read_text().splitlines() if line.startswith(f"| {name} |")]
    return line.split("|")[2].strip()


def test_weights_as_they_are_trained_have_no_figure_of_rounding(built: Path) -> None:
    chain = Chain(built)
    model = load_file(chain.folder("sft") / "model" / "model.safetensors")
    assert {weight.dtype for weight in model.values()} == {torch.float32}
    assert "surviving_update" not in chain.manifest("sft")["metrics"]
    assert chain.folder("base") == chain.folder("base", "model.dtype=null")


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


def test_a_model_that_is_not_trained_is_published_as_its_base(
    half: list[Path], tmp_path: Path
) -> None:
    given = tmp_path / "given"
    shutil.copytree(half[1] / "model", given)
    keys = (
        "model.dtype=bfloat16",
        "stage=sft",
        "sft=none",
        f"model.path={given}",
        "model.random_init=null",
    )
    build(tmp_path, *keys)
    published = load_file(Chain(tmp_path).folder("sft", *keys) / "model" / "model.safetensors")
    assert all(
        torch.equal(published[name], each)
        for name, each in load_file(given / "model.safetensors").items()
    )


def test_a_scalar_is_rounded_too(tmp_path: Path) -> None:
    LlamaConfig(dtype="float32").save_pretrained(tmp_path)
    save_file({"scale": torch.tensor(1.001), "count": torch.tensor(3)}, tmp_path / "a.safetensors")
    assert rounding.round_model(tmp_path) == 0.5
    assert load_file(tmp_path / "a.safetensors")["count"] == 3


def test_an_adapter_does_not_continue_from_rounded_weights() -> None:
    line = refused("recipe=tiny", *HALF, "sft.adapter=lora", "dpo.adapter=continued")
    assert "model.dtype" in line and "dpo.adapter=lora" in line
