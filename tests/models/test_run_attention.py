"""Tests of attention over runs on a CPU: outputs and gradients, in bf16 as close to exact as SDPA's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stages.models import packing, run_attention
from stages.models.run_attention import RunLayout

HEADS, DIM = 4, 8


def of_a_window_within_a_long_prefix(attend: object) -> list[torch.Tensor]:
    """Return `attended` for runs whose window covers little of a prefix longer than a block of the kernel."""
    layout = RunLayout.from_lengths([1300, 20, 1], torch.device("cpu"), [0, 1200, 20])
    draw = torch.Generator().manual_seed(0)
    states = [
        torch.randn(1, heads, 1321, DIM, generator=draw).requires_grad_() for heads in (4, 1, 1)
    ]
    module = SimpleNamespace(num_key_value_groups=4, is_causal=True)
    output = attend(module, states, layout, sliding_window=8)
    (output * torch.randn(output.shape, generator=draw)).sum().backward()
    return [output.detach(), *(state.grad for state in states)]


def attended(attend: object, dtype: torch.dtype, window: int | None) -> list[torch.Tensor]:
    """Return output and gradients of query, key and value over four runs: a whole sequence, one that continues it, one
    without tokens, and a separate one."""
    layout = RunLayout.from_lengths([12, 7, 0, 5], torch.device("cpu"), [0, 9, 3, 0])
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
    padded_results = attended(packing.attend_padded, torch.float32, window)
    for result, other in zip(
        attended(packing.attend_by_run, torch.float32, window), padded_results, strict=True
    ):
        assert torch.allclose(result, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("few", "block"), [(0, 256), (0, 5), (100, 256), (20_000, 256)])
@pytest.mark.parametrize("window", [None, 4])
def test_in_bf16_it_is_as_near_to_exact_as_sdpas(
    window: int | None, few: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_attention, "MOST_KERNEL_SCORES", few)
    monkeypatch.setattr(run_attention, "PRODUCT_QUERIES", block)
    for gradient, kernel_gradient, truth in zip(
        attended(packing.attend_by_run, torch.bfloat16, window),
        attended(packing.attend_padded, torch.bfloat16, window),
        attended(packing.attend_padded, torch.float32, window),
        strict=True,
    ):
        assert float((gradient - truth).norm()) <= 1.5 * float((kernel_gradient - truth).norm())


def test_a_window_within_a_long_prefix_is_sdpas() -> None:
    padded_results = of_a_window_within_a_long_prefix(packing.attend_padded)
    for result, other in zip(
        of_a_window_within_a_long_prefix(packing.attend_by_run), padded_results, strict=True
    ):
        assert torch.allclose(result, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_has_no_gradient_and_the_rest_has_its_own(frozen: int) -> None:
    def gradients(attend: object) -> list[torch.Tensor | None]:
        draw = torch.Generator().manual_seed(0)
        states = [
            torch.randn(1, HEADS, 12, DIM, generator=draw).requires_grad_(i != frozen)
            for i in range(3)
        ]
        layout = RunLayout.from_lengths([7, 5], torch.device("cpu"), [0, 4])
        output = attend(SimpleNamespace(is_causal=True), states, layout)
        (output * torch.randn(output.shape, generator=draw)).sum().backward()
        return [state.grad for state in states]

    pairs = zip(gradients(packing.attend_by_run), gradients(packing.attend_padded), strict=True)
    for i, (by_run, padded) in enumerate(pairs):
        assert (by_run is None) == (padded is None) == (i == frozen)
        assert by_run is None or torch.allclose(by_run, padded, rtol=1e-5, atol=1e-5)


def by_attention(
    states: list[torch.Tensor],
    layout: RunLayout | None,
    module: object = SimpleNamespace(is_causal=True),
    **options: Any,
) -> torch.Tensor:
    return packing.attention(module, *states, None, layout, **options)[0]


def test_heads_whose_elements_are_apart_are_attended_to_as_others() -> None:
    """Check strided states, as from a reshaped product: SDPA's CPU kernel cannot read these, and must not be
    called."""
    layout = RunLayout.from_lengths([7, 5], torch.device("cpu"), [0, 4])
    states = [torch.randn(1, HEADS, 12, DIM) for _ in range(3)]
    expected = by_attention(states, layout)
    for i in range(3):
        strided = [*states]
        strided[i] = states[i].transpose(2, 3).contiguous().transpose(2, 3)
        assert torch.allclose(by_attention(strided, layout), expected, atol=1e-5)


@pytest.mark.extended
def test_attention_that_drops_out_is_right_on_average() -> None:
    draws, layout = 2000, RunLayout.from_lengths([5, 3], torch.device("cpu"), [0, 4])
    torch.manual_seed(0)
    states = [torch.randn(1, HEADS, 8, DIM).requires_grad_() for _ in range(3)]
    outputs = torch.stack([by_attention(states, layout, dropout=0.2) for _ in range(draws)])
    assert not torch.equal(outputs[0], outputs[1])
    deviation = outputs.std(0) / draws**0.5
    expected = by_attention(states, layout)
    assert bool(((outputs.mean(0) - expected).abs() <= 6 * deviation + 1e-5).all())
    outputs.sum().backward()
    assert all(
        bool(state.grad.isfinite().all()) and float(state.grad.abs().sum()) > 0 for state in states
    )
