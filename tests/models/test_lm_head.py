"""Tests of the LM head on a CPU: values and gradients equal TRL's for every scale, soft cap and chunk size."""

import pytest
import torch
from trl.kernels import ChunkedLogProbFunction

from stages.models import lm_head
from stages.models.lm_head import CPULogProbFunction

VOCABULARY, WIDTH, COUNT = 97, 12, 50


def scored(
    function: type, dtype: torch.dtype, biased: bool, cap: float | None, scale: float
) -> list[torch.Tensor]:
    """Return all outputs for seeded tokens, and the gradients of all inputs."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=draw).to(dtype).requires_grad_()
        for shape in ((COUNT, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    )
    targets, weights = (
        torch.randint(VOCABULARY, (COUNT,), generator=draw),
        torch.randn(COUNT, generator=draw),
    )
    outputs = function.apply(
        hidden, weight, bias if biased else None, targets, 1.3, 32, cap, scale, lm_head.STATISTICS
    )
    (outputs[0] * weights).sum().backward()
    assert (bias.grad is not None) == biased
    return [*outputs, hidden.grad, weight.grad, *([bias.grad] if biased else [])]


@pytest.mark.parametrize("kept_tokens", [0, COUNT])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("cap", "scale"), [(None, 1.3), (None, 0.5), (4.0, 0.7)])
def test_it_is_trls(
    biased: bool, cap: float | None, scale: float, kept_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl_outputs = scored(ChunkedLogProbFunction, torch.float32, biased, cap, scale)
    monkeypatch.setattr(lm_head, "PRODUCT_TOKENS", 24)
    monkeypatch.setattr(lm_head, "READ_TOKENS", 10)
    monkeypatch.setattr(lm_head, "MOST_KEPT_TOKENS", kept_tokens)
    for output, other in zip(
        scored(CPULogProbFunction, torch.float32, biased, cap, scale), trl_outputs, strict=True
    ):
        assert torch.allclose(output.float(), other.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("cap", "scale"), [(None, 1.3), (4.0, 0.7)])
def test_its_gradients_are_those_of_its_values(cap: float | None, scale: float) -> None:
    """Compare with finite differences, in float64."""
    hidden, weight, bias = (
        torch.randn(s).double().requires_grad_() for s in ((5, 4), (7, 4), (7,))
    )
    targets = torch.arange(5)

    def log_probs(*inputs: torch.Tensor) -> torch.Tensor:
        return CPULogProbFunction.apply(*inputs, targets, 1.3, 32, cap, scale, ())[0]

    assert torch.autograd.gradcheck(log_probs, (hidden, weight, bias))


def test_in_bf16_it_is_as_near_to_exact_as_trls() -> None:
    exact = scored(CPULogProbFunction, torch.float32, False, None, 1.0)
    for gradient, trl_gradient, truth in zip(
        scored(CPULogProbFunction, torch.bfloat16, False, None, 1.0),
        scored(ChunkedLogProbFunction, torch.bfloat16, False, None, 1.0),
        exact,
        strict=True,
    ):
        ours_off, theirs_off = (
            float((rounded.float() - truth.float()).norm()) for rounded in (gradient, trl_gradient)
        )
        assert ours_off <= 1.5 * theirs_off + 1e-6


def test_no_token_to_score_is_no_error() -> None:
    hidden, weight = (
        torch.zeros(0, WIDTH, requires_grad=True),
        torch.zeros(VOCABULARY, WIDTH, requires_grad=True),
    )
    outputs = CPULogProbFunction.apply(
        hidden, weight, None, torch.zeros(0, dtype=torch.long), 1.0, 32
    )
    outputs[0].sum().backward()
    assert [len(f) for f in outputs] == [0] * 5
    assert float(weight.grad.abs().sum()) == 0


def test_a_large_vocabulary_of_unlikely_tokens_is_added_up_exactly() -> None:
    """torch's log_softmax adds numbers below 1e-7 to a sum of 1, and so loses those of one lane in eight."""
    weight, hidden, target = (
        torch.full((49_152, 1), -18.0),
        torch.ones(4, 1),
        torch.zeros(4, dtype=torch.long),
    )
    weight[0] = 0.0
    log_probs = CPULogProbFunction.apply(hidden, weight, None, target, 1.0, 32, None, 1.0, ())[0]
    exact = (weight.double() * hidden[:1].double()).log_softmax(0)[0]
    assert log_probs.tolist() == pytest.approx([float(exact)] * 4, abs=1e-6)
