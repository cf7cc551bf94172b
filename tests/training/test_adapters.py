"""Tests of LoRA and QLoRA in the real chain: the trained model is published, and DPO's reference is the SFT model."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from stages import dpo
from stages.config.blocks.training import LoRA
from stages.config.choices import Weights
from stages.config.errors import UserError
from stages.models.loading import load_model
from stages.store.workspace import StageDir
from stages.training.adapters import attach_new_adapter
from tests.helpers import QLORA, Chain, build, settings

IDS = torch.arange(20, 52)[None]


def overrides(kind: str) -> tuple[str, ...]:
    return (
        "stage=dpo",
        f"sft.adapter={'lora' if kind == 'continued' else kind}",
        f"dpo.adapter={kind}",
    )


@pytest.fixture(
    scope="module", params=["lora", QLORA, pytest.param("continued", marks=pytest.mark.slow)]
)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Chain, str]:
    root = tmp_path_factory.mktemp(request.param)
    build(root, *overrides(request.param))
    return Chain(root), request.param


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_what_is_published_is_the_frozen_weights_with_the_adapter(
    trained: tuple[Chain, str],
) -> None:
    chain, kind = trained
    below = {"sft": "base", "dpo": "base" if kind == "continued" else "sft"}
    for stage, frozen in below.items():
        weights = Weights.nf4 if kind == "qlora" else Weights.fp32
        folder = chain.folder(stage, *overrides(kind))
        lower = load_model(chain.folder(frozen, *overrides(kind)) / "model", weights)
        before = logits(lower)
        with_adapter = logits(PeftModel.from_pretrained(lower, folder / "adapter").eval())
        published = logits(load_model(folder / "model"))
        # Two matrix products replace one, which changes fp32 logits of about 10 by rounding.
        assert torch.allclose(published, with_adapter, atol=1e-4)
        assert not torch.allclose(published, before, atol=1e-2), "the adapter has learnt something"


def test_the_policy_stops_and_pads_as_the_sft_model(trained: tuple[Chain, str]) -> None:
    chain, kind = trained
    sft, policy = (
        (chain.folder(stage, *overrides(kind)) / "model" / "generation_config.json").read_text()
        for stage in ("sft", "dpo")
    )
    assert sft == policy


@pytest.mark.parametrize("layer", ["wte", "lm_head"])
def test_an_embedding_or_output_layer_is_not_adapted(layer: str) -> None:
    """The losses read the output layer's frozen weights, and in this model both layers are one."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(UserError, match="cannot be adapted"):
        attach_new_adapter(model, LoRA(4, 8, ["c_attn", layer]), seed=0)


def test_every_factor_was_trained_and_nothing_else(trained: tuple[Chain, str]) -> None:
    chain, kind = trained
    factors = load_file(
        chain.folder("dpo", *overrides(kind)) / "adapter" / "adapter_model.safetensors"
    )
    assert factors and all(bool(values.any()) for values in factors.values()), (
        "lora_B starts at zero"
    )
    assert all(values.dtype == torch.float32 for values in factors.values())
    base, sft, policy = (
        load_file(chain.folder(stage, *overrides(kind)) / "model" / "model.safetensors")
        for stage in ("base", "sft", "dpo")
    )
    untouched = [name for name in base if "proj" not in name]
    assert untouched
    for name in untouched:
        assert torch.equal(base[name], sft[name]) and torch.equal(sft[name], policy[name]), name


def test_the_reference_is_the_sft_model_and_the_raw_base_is_refused(
    trained: tuple[Chain, str], tmp_path: Path
) -> None:
    chain, kind = trained
    cfg = settings("recipe=tiny", *overrides(kind)).dpo
    inputs = {stage: chain.folder(stage, *overrides(kind)) for stage in ("pairs", "reference")}
    assert chain.manifest("dpo", *overrides(kind))["metrics"]["step_0_gap"] <= 1e-5

    raw = shutil.copytree(chain.folder("sft", *overrides(kind)), tmp_path / "raw")
    base = chain.folder("base", *overrides(kind)) / "model"
    shutil.copy(base / "model.safetensors", raw / "model" / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    if kind == "continued":  # without its adapter, a continued policy is the raw base
        shutil.rmtree(raw / "adapter")
        shutil.copytree(chain.folder("dpo", *overrides(kind)) / "adapter", raw / "adapter")
        inputs["frozen"] = base.parent
    with pytest.raises(UserError, match=r"differ by .* nats"):
        dpo.run(cfg, {**inputs, "policy": raw}, StageDir(out, lambda m, s: None))


def test_full_training_and_lora_share_the_reference_in_fp32(built: Path) -> None:
    chain = Chain(built)
    assert chain.folder("reference") == chain.folder("reference", "dpo.adapter=lora")
    assert chain.folder("reference") != chain.folder("reference", "dpo.adapter=qlora")
    assert chain.folder("reference") != chain.folder(
        "reference", "dpo.adapter=lora", "precision=bf16"
    )


def test_an_adapter_names_no_path_of_this_machine(trained: tuple[Chain, str]) -> None:
    chain, kind = trained
    for stage in ("sft", "dpo"):
        config = (
            chain.folder(stage, *overrides(kind)) / "adapter" / "adapter_config.json"
        ).read_text()
        assert str(chain.root) not in config


def test_a_layer_that_the_model_lacks_is_told() -> None:
    """peft refuses only a list of which nothing is there."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(UserError, match="has no layer gate_proj"):
        attach_new_adapter(model, LoRA(4, 8, ["c_attn", "gate_proj"]), seed=0)


def test_where_not_every_linear_layer_can_be_adapted_the_others_are_named() -> None:
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 64, "state_size": 4}
    model = MambaForCausalLM(MambaConfig(**shape))
    with pytest.raises(UserError, match=r"'out_proj'.* Name the layers"):
        attach_new_adapter(model, LoRA(4, 8, ["all-linear"]), seed=0)
    assert attach_new_adapter(model, LoRA(4, 8, ["in_proj"]), seed=0).targeted_module_names
