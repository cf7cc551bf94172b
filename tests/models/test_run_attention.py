"""Tests of attention by one kernel call for each run against SDPA over padded sequences."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stages.models import packing, run_attention
from stages.models.run_attention import RunLayout

HEADS = 4
DIM = 8


def attended(attend: Any, dtype: torch.dtype, window: int | None, longer: int) -> list[Any]:
    """Return output and gradients of query, key and value over four runs: a whole sequence, one that continues it, one
    without tokens, and a separate one. The first is `longer`: with 1,200 tokens more, the second's window covers little
    of a prefix longer than a block of the kernel."""
    cpu = torch.device("cpu")
    layout = RunLayout.from_lengths([12 + longer, 7, 0, 5], cpu, [0, 9 + longer, 3, 0])
    draw = torch.Generator().manual_seed(0)
    states = list[torch.Tensor]()
    for heads in (HEADS, HEADS // 2, HEADS // 2):
        states.append(torch.randn(1, heads, 24 + longer, DIM, generator=draw).requires_grad_())
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        output = attend(module, states, layout, scaling=0.3, sliding_window=window)
    (output.float() * torch.randn(output.shape, generator=draw)).sum().backward()
    return [output.detach().float(), *(state.grad for state in states)]


@pytest.mark.parametrize(("window", "longer"), [(None, 0), (4, 0), (4, 1200)])
def test_in_fp32_it_is_sdpas(window: int | None, longer: int) -> None:
    padded = attended(packing.attend_padded, torch.float32, window, longer)
    by_run = attended(packing.attend_by_run, torch.float32, window, longer)
    for result, other in zip(by_run, padded, strict=True):
        assert torch.allclose(result, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("few", "block"), [(0, 5), (100, 256), (20_000, 256)])
@pytest.mark.parametrize("window", [None, 4])
def test_in_bf16_it_is_as_near_to_exact_as_sdpas(
    window: int | None, few: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_attention, "MOST_KERNEL_SCORES", few)
    monkeypatch.setattr(run_attention, "PRODUCT_QUERIES", block)
    by_run = attended(packing.attend_by_run, torch.bfloat16, window, 0)
    padded = attended(packing.attend_padded, torch.bfloat16, window, 0)
    exact = attended(packing.attend_padded, torch.float32, window, 0)
    for result, other, truth in zip(by_run, padded, exact, strict=True):
        assert float((result - truth).norm()) <= 1.5 * float((other - truth).norm())


def test_heads_whose_elements_are_apart_are_attended_to_as_others() -> None:
    """Check strided states, as from a reshaped product: SDPA's CPU kernel cannot read these, and must not be
    called."""
    layout = RunLayout.from_lengths([7, 5], torch.device("cpu"), [0, 4])
    module: Any = SimpleNamespace(is_causal=True)
    states = [torch.randn(1, HEADS, 12, DIM) for _ in range(3)]
    expected, _ = packing.attention(module, *states, None, layout)
    for i in range(3):
        strided = [*states]
        strided[i] = states[i].transpose(2, 3).contiguous().transpose(2, 3)
        output, _ = packing.attention(module, *strided, None, layout)
        assert torch.allclose(output, expected, atol=1e-5)
