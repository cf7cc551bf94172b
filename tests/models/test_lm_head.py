"""Tests of the LM head on a CPU: values and gradients equal TRL's."""

import pytest
import torch
from trl.trainer import utils as trl_utils

from stages.models import lm_head
from stages.models.lm_head import CPULogProbFunction, FusedHead

VOCABULARY = 97
WIDTH = 12
COUNT = 50


class TRLs:
    """TRL's own function, also after `install_cpu_head`."""

    apply = staticmethod(lm_head.score_as_trl)


def scored(function: type, dtype: torch.dtype, scale: float) -> list[torch.Tensor]:
    """Return all outputs for seeded tokens, and the gradients of all inputs."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(COUNT, WIDTH, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (COUNT,), generator=draw)
    outputs = function.apply(
        hidden, weight, None, targets, 1.3, 32, None, scale, lm_head.STATISTICS
    )
    (outputs[0] * torch.randn(COUNT, generator=draw)).sum().backward()
    return [*outputs, hidden.grad, weight.grad]


@pytest.mark.parametrize(("kept_tokens", "scale"), [(0, 0.5), (COUNT, 0.5), (COUNT, 1.3)])
def test_it_is_trls(kept_tokens: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scored(TRLs, torch.float32, scale)
    monkeypatch.setattr(lm_head, "PRODUCT_TOKENS", 24)
    monkeypatch.setattr(lm_head, "READ_TOKENS", 10)
    monkeypatch.setattr(lm_head, "MOST_KEPT_TOKENS", kept_tokens)
    results = scored(FusedHead, torch.float32, scale)
    for result, other in zip(results, expected, strict=True):
        assert torch.allclose(result.float(), other.float(), rtol=1e-5, atol=1e-5)


def test_in_bf16_it_is_as_near_to_exact_as_trls() -> None:
    exact = scored(FusedHead, torch.float32, 1.0)
    rounded = scored(FusedHead, torch.bfloat16, 1.0)
    by_trl = scored(TRLs, torch.bfloat16, 1.0)
    for result, other, truth in zip(rounded, by_trl, exact, strict=True):
        error = float((result.detach().float() - truth.detach().float()).norm())
        assert error <= 1.5 * float((other.float() - truth.float()).norm()) + 1e-6


def test_no_token_to_score_is_no_error() -> None:
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    weight = torch.zeros(VOCABULARY, WIDTH, requires_grad=True)
    targets = torch.zeros(0, dtype=torch.long)
    outputs = CPULogProbFunction.apply(hidden, weight, targets, 1.0, lm_head.STATISTICS)
    outputs[0].sum().backward()
    assert [len(each) for each in outputs] == [0] * 5
    assert float(weight.grad.abs().sum()) == 0


def test_a_large_vocabulary_of_unlikely_tokens_is_added_up_exactly() -> None:
    """torch's log_softmax adds numbers below 1e-7 to a sum of 1, and so loses those of one lane in eight."""
    weight = torch.full((49_152, 1), -18.0)
    weight[0] = 0.0
    targets = torch.zeros(4, dtype=torch.long)
    log_probs = CPULogProbFunction.apply(torch.ones(4, 1), weight, targets, 1.0, ())[0]
    exact = float(weight.double().log_softmax(0)[0])
    assert log_probs.tolist() == pytest.approx([exact] * 4, abs=1e-6)


def test_trls_head_calls_ours_wherever_it_finds_its_function() -> None:
    from trl.kernels import ChunkedLogProbFunction

    lm_head.install_cpu_head()
    assert ChunkedLogProbFunction.apply is FusedHead.apply
    assert trl_utils._ChunkedLogProbFunction.apply is FusedHead.apply, "an alias of the same class"
