"""Tests of LoRA and QLoRA in the real chain: the trained model is published, and DPO's reference is the SFT model."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    PhiConfig,
    PretrainedConfig,
)

from stages import dpo
from stages.config.blocks.objective import LoRA
from stages.config.choices import Forward, Weights
from stages.config.errors import UserError
from stages.models.loading import load_model, save_model
from stages.models.scoring import install_scoring
from stages.store import sealed_json
from stages.store.workspace import StageDir
from stages.training import saving
from stages.training.adapters import attach_new_adapter, embeddings, merge_trained
from tests.helpers import QLORA, Chain, build, settings

IDS = torch.arange(20, 52)[None]
LORA = LoRA(4, 8, ["all-linear"])


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
        config = (folder / "adapter" / "adapter_config.json").read_text()
        assert str(chain.root) not in config, "it names no path of this machine"


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


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
NEW = [101, 103]  # tokens that get rows
GPT2 = GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1)
PHI = PhiConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=104
)
MAMBA = MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=64, state_size=4)


@pytest.mark.parametrize(
    ("config", "layers", "new_tokens", "message"),
    [
        (GPT2, ["c_attn", "wte"], [], "cannot be adapted"),
        (GPT2, ["c_attn", "lm_head"], [], "cannot be adapted"),
        (GPT2, ["c_attn", "gate_proj"], [], "has no layer gate_proj"),
        (PHI, ["all-linear"], NEW, "adapter=none"),
        (MAMBA, ["all-linear"], [], r"'out_proj'.* Name the layers"),
    ],
)
def test_layers_that_no_adapter_can_train_are_refused(
    config: PretrainedConfig, layers: list[str], new_tokens: list[int], message: str
) -> None:
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=message):
        attach_new_adapter(model, LoRA(4, 8, layers), seed=0, new_tokens=new_tokens)


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_trained_in_embedding_and_output_layer(tied: bool, tmp_path: Path) -> None:
    config = LlamaConfig(**SIZES, vocab_size=104, tie_word_embeddings=tied)
    start = LlamaForCausalLM(config)
    start.save_pretrained(tmp_path / "start")
    model = attach_new_adapter(install_scoring(start, Forward.padded), LORA, 0, new_tokens=NEW)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.tensor([[1, 101, 5, 103, 7, 101]])
    for _ in range(3):
        model(ids, labels=ids, fused_lm_head=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    plain = logits(model).log_softmax(-1)
    scored = model(IDS, labels=IDS, fused_lm_head=True).log_probs
    expected = plain[:, :-1].gather(-1, IDS[:, 1:, None])[..., 0]
    torch.testing.assert_close(scored, expected)

    save_model(model, tmp_path / "adapter")
    start = load_model(tmp_path / "start")
    cfg = settings("recipe=tiny", "sft.adapter=lora").sft
    merged = merge_trained(start, Weights.fp32, tmp_path / "adapter", cfg)
    torch.testing.assert_close(logits(merged).log_softmax(-1), plain)
    save_model(merged, tmp_path / "published")
    before, after = load_model(tmp_path / "start"), load_model(tmp_path / "published")
    for old, new in zip(embeddings(before), embeddings(after), strict=True):
        changed = (old.weight != new.weight).any(dim=-1).nonzero().flatten().tolist()
        assert changed == NEW


def test_nothing_is_published_of_a_merge_that_changes_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=64)).save_pretrained(tmp_path / "start")
    start = load_model(tmp_path / "start")
    adapted = attach_new_adapter(start, LORA, seed=0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(weight)
    save_model(adapted, tmp_path / "trained")
    sealed_json.seal(tmp_path / "trained")
    monkeypatch.setattr(Linear, "get_delta_weight", lambda layer, adapter: layer.weight * 0)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"^sft\.adapter=lora: .*sft\.adapter=none"):
        saving.publish(
            tmp_path / "trained",
            settings("recipe=tiny", "sft.adapter=lora").sft,
            StageDir(tmp_path / "out", lambda m, s: None),
            tmp_path / "start",
            lambda weights: load_model(tmp_path / "start", weights),
        )
    assert not (tmp_path / "out" / "model").exists()
