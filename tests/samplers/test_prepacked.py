"""Prepacked linear layers on a CPU: the same logits as the plain model, with the weights in memory once."""

import weakref
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stages.config.blocks.training import LoRA
from stages.models.loading import load_model
from stages.samplers import hf
from stages.samplers.hf import HFSampler, Prepacked, prepack
from stages.samplers.sampler import Request
from stages.training import adapters
from tests.helpers import NEEDS_4_BIT, settings
from tests.samplers.test_samplers import SHAPE, prompts

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN"
)
BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
FAMILIES = {
    "llama": lambda bias: LlamaForCausalLM(
        LlamaConfig(attention_bias=bias, mlp_bias=bias, **SHAPE)
    ),
    "qwen3": lambda bias: Qwen3ForCausalLM(Qwen3Config(attention_bias=bias, head_dim=8, **SHAPE)),
    # tied
    "gemma3": lambda bias: Gemma3ForCausalLM(
        Gemma3TextConfig(attention_bias=bias, head_dim=8, **SHAPE)
    ),
}
PRECISIONS = [
    (torch.float32, 1e-5),
    # bf16 rounds to 8 bits in both layers, after sums in another order.
    pytest.param(
        torch.bfloat16, 0.02, marks=pytest.mark.skipif(not BF16, reason="a CPU that emulates bf16")
    ),
]


def make_model(
    family: str, dtype: torch.dtype = torch.float32, bias: bool = False
) -> PreTrainedModel:
    """Return a tiny model with random biases."""
    torch.manual_seed(0)
    model = FAMILIES[family](bias)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model.to(dtype).eval()


def linears(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_prepacked_logits_equal_the_plain_models(
    family: str, dtype: torch.dtype, tolerance: float, bias: bool, rows: int
) -> None:
    """Prepack for seven rows, and multiply any number of rows."""
    ids = torch.randint(3, 600, (rows, 4), generator=torch.Generator().manual_seed(1))
    plain, laid_out = make_model(family, dtype, bias), prepack(make_model(family, dtype, bias), 7)
    layers = [layer for layer in laid_out.modules() if isinstance(layer, Prepacked)]
    assert not linears(laid_out) and len(layers) == len(linears(plain))
    assert any(layer.bias is not None for layer in layers) == bias
    expected, logits = plain(ids).logits.float(), laid_out(ids).logits.float()
    assert float((logits - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_weight_is_freed_before_the_next_is_prepacked(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=tied, **SHAPE)).eval()
    embedding = model.get_input_embeddings().weight
    weights = [weakref.ref(layer.weight) for layer in linears(model)]
    left = list[int]()

    class Watched(Prepacked):
        def __init__(self, linear: torch.nn.Linear, rows: int):
            left.append(sum(weight() is not None for weight in weights))
            super().__init__(linear, rows)

    monkeypatch.setattr(hf, "Prepacked", Watched)
    prepack(model, 7)
    assert left == [*range(len(weights), 0, -1)]
    assert [weight() for weight in weights if weight() is not None] == ([embedding] if tied else [])
    assert model.get_input_embeddings().weight is embedding


def test_layers_on_other_devices_and_of_other_precisions_are_left_alone() -> None:
    for model in (
        make_model("llama").to("meta"),
        make_model("llama", torch.float64),
        make_model("llama", torch.float16),
    ):
        before = linears(model)
        assert before and linears(prepack(model, 7)) == before


def test_bf16_that_a_cpu_emulates_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert len(linears(prepack(make_model("llama", torch.bfloat16), 7))) == len(
        linears(make_model("llama"))
    )
    assert not linears(prepack(make_model("llama"), 7))


def test_without_onednn_no_onednn_operation_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call no oneDNN operation if PyTorch was built without oneDNN."""

    def unknown() -> bool:
        raise AttributeError

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", unknown)
    assert len(linears(prepack(make_model("llama"), 7))) == len(linears(make_model("llama")))


@torch.inference_mode()
def test_a_model_under_an_adapter_has_the_same_logits() -> None:
    """Keep the adapter's layers, and prepack the plain layers inside them."""
    model = adapters.attach_new_adapter(
        make_model("llama"), LoRA(rank=4, alpha=8, target_modules=["all-linear"]), seed=0
    ).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.tensor([prompts(1)[0]])
    expected, kinds = model(ids).logits, [type(layer).__module__ for layer in model.modules()]
    logits = prepack(model, 7)(ids).logits
    assert torch.allclose(logits, expected, atol=1e-5)
    left = [type(layer).__module__ for layer in model.modules()]
    assert [kind for kind in left if kind.startswith("peft")] == [
        kind for kind in kinds if kind.startswith("peft")
    ]


@pytest.mark.parametrize("_", [pytest.param(None, marks=NEEDS_4_BIT)], ids=["nf4"])
def test_layers_in_4_bits_are_left_alone(_: None) -> None:
    from bitsandbytes.nn import Linear4bit

    model = torch.nn.Sequential(Linear4bit(64, 64), torch.nn.Linear(64, 64))
    assert [type(layer) for layer in prepack(model, 7)] == [Linear4bit, Prepacked]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_opened_sampler_generates_what_transformers_generates(
    family: str, tmp_path: Path
) -> None:
    """Compare greedy tokens in fp32 one by one."""
    make_model(family, bias=True).save_pretrained(tmp_path)
    cfg = settings("recipe=tiny", "precision=fp32", "sample.max_new_tokens=12").sample
    cfg.runtime.device, cfg.runtime.batch_size = "cpu", 5
    sampler = HFSampler.open(tmp_path, [2], cfg)
    assert isinstance(sampler, HFSampler) and not linears(sampler.model)
    plain = load_model(tmp_path)
    for request, (completion,) in sampler.complete(
        [Request(f"{i:04x}", [], ids, [0.0], 0) for i, ids in enumerate(prompts(12))]
    ):
        ids = torch.tensor([request.token_ids])
        expected = plain.generate(
            ids, do_sample=False, max_new_tokens=12, eos_token_id=2, pad_token_id=0
        )
        assert completion.token_ids == expected[0, ids.shape[1] :].tolist()
