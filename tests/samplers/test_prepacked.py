"""Prepacked linear layers on a CPU: the same logits as the plain model, with the weights in memory once."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from stages.config.blocks.objective import LoRA
from stages.models.loading import load_model
from stages.samplers.hf import HFSampler, Prepacked, prepack
from stages.samplers.sampler import Request
from stages.training import adapters
from tests.helpers import settings
from tests.samplers.test_samplers import SHAPE, prompts

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN"
)
BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
PRECISIONS = [
    (torch.float32, 1e-5),
    # bf16 rounds to 8 bits in both layers, after sums in another order.
    pytest.param(
        torch.bfloat16, 0.02, marks=pytest.mark.skipif(not BF16, reason="a CPU that emulates bf16")
    ),
]


def make_model(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a tiny model with random biases."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(attention_bias=True, **SHAPE))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model.to(dtype).eval()


def linears(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@torch.inference_mode()
def test_prepacked_logits_equal_the_plain_models(dtype: torch.dtype, tolerance: float) -> None:
    """Prepack for seven rows, and multiply more."""
    ids = torch.randint(3, 600, (30, 4), generator=torch.Generator().manual_seed(1))
    expected = make_model(dtype)(ids).logits.float()
    prepacked = prepack(make_model(dtype), 7)
    assert not linears(prepacked)
    logits = prepacked(ids).logits.float()
    assert float((logits - expected).norm() / expected.norm()) < tolerance


@torch.inference_mode()
def test_a_model_under_an_adapter_has_the_same_logits() -> None:
    """Keep the adapter's layers, and prepack the plain layers inside them."""
    lora = LoRA(rank=4, alpha=8, target_modules=["all-linear"])
    model = adapters.attach_new_adapter(make_model(), lora, seed=0).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.tensor([prompts(1)[0]])
    expected = model(ids).logits
    assert torch.allclose(prepack(model, 7)(ids).logits, expected, atol=1e-5)
    assert any(isinstance(layer, Prepacked) for layer in model.modules())


def test_an_opened_sampler_generates_what_transformers_generates(tmp_path: Path) -> None:
    """Compare greedy tokens in fp32 one by one."""
    make_model().save_pretrained(tmp_path)
    cfg = settings("recipe=tiny", "precision=fp32", "sample.max_new_tokens=12").sample
    cfg.runtime.device = "cpu"
    cfg.runtime.batch_size = 5
    sampler = HFSampler.open(tmp_path, [2], cfg)
    assert isinstance(sampler, HFSampler) and not linears(sampler.model)
    plain = load_model(tmp_path)
    requests = [Request(f"{i:04x}", [], ids, [0.0], 0) for i, ids in enumerate(prompts(6))]
    for request, [completion] in sampler.complete(requests):
        ids = torch.tensor([request.token_ids])
        expected = plain.generate(
            ids, do_sample=False, max_new_tokens=12, eos_token_id=2, pad_token_id=0
        )
        assert completion.token_ids == expected[0, ids.shape[1] :].tolist()
