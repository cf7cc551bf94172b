"""Attention over runs on a CPU: in bf16 as near to exact as SDPA's own, gradients too, wherever fp32 takes over."""

from types import SimpleNamespace

import pytest
import torch

from stages.models import packing, run_attention
from stages.models.packing import Layout

HEADS, DIM = 4, 8


def attended(attend: object, dtype: torch.dtype, window: int | None) -> list[torch.Tensor]:
    """Output, and gradients of query, key and value, over a run, one that continues it, one that adds nothing, and
    one of its own."""
    layout = Layout.of([12, 7, 0, 5], torch.device("cpu"), [0, 9, 3, 0])
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, heads, 24, DIM) for heads in (HEADS, HEADS // 2, HEADS // 2)]
    states = [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        output = attend(module, states, layout, scaling=0.3, sliding_window=window)
    (output.float() * torch.randn(output.shape, generator=draw)).sum().backward()
    return [output.detach().float(), *(state.grad for state in states)]


@pytest.mark.parametrize("window", [None, 4])
def test_in_fp32_it_is_sdpas(window: int | None) -> None:
    theirs = attended(packing.all_at_once, torch.float32, window)
    for ours, other in zip(attended(packing.run_by_run, torch.float32, window), theirs, strict=True):
        assert torch.allclose(ours, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("exact", [0, 12, 400])
@pytest.mark.parametrize("window", [None, 4])
def test_in_bf16_it_is_as_near_to_exact_as_sdpas(
    window: int | None, exact: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_attention, "EXACT", exact)
    for ours, theirs, truth in zip(
        attended(packing.run_by_run, torch.bfloat16, window),
        attended(packing.all_at_once, torch.bfloat16, window),
        attended(packing.all_at_once, torch.float32, window),
        strict=True,
    ):
        assert float((ours - truth).norm()) <= 1.5 * float((theirs - truth).norm())
