"""Tests of scoring: the fused head gives the model's log-probs and gradients, computed only for labelled positions."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer import utils as trl_utils

from stages.config.choices import Precision
from stages.config.errors import UserError
from stages.models.loading import load_model, resolve_device, save_model
from stages.models.scoring import batches_by_length, install_scoring, pair_log_probs
from stages.store.records import PairLogProbs


@pytest.fixture
def folder(built: Path) -> Path:
    return next((built / "sft").glob("*/model"))


def test_log_probs_are_the_models_own_whatever_the_company(folder: Path) -> None:
    plain, scoring = load_model(folder), install_scoring(load_model(folder))
    ids = [
        ([5, 6, 7], [8, 9], [8, 10, 11]),
        ([10], [11, 12, 13, 14], [2]),
        ([15, 16, 17, 18, 19, 20], [21], [22]),
    ]
    pairs = [PairLogProbs(str(i), *token_ids, [], []) for i, token_ids in enumerate(ids)]
    together = pair_log_probs(scoring, pairs, 3, Precision.fp32)
    for pair, both in zip(pairs, together, strict=True):
        alone = pair_log_probs(scoring, [pair], 3, Precision.fp32)[0]
        for completion, log_probs, log_probs_alone in zip(
            (pair.chosen_ids, pair.rejected_ids), both, alone, strict=True
        ):
            with torch.no_grad():
                logits = plain(torch.tensor([pair.prompt_ids + completion])).logits[
                    0, len(pair.prompt_ids) - 1 : -1
                ]
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
            assert log_probs == pytest.approx(expected.tolist(), abs=1e-5)
            assert log_probs == pytest.approx(log_probs_alone, abs=1e-5)


@given(st.lists(st.integers(1, 99), max_size=40), st.integers(1, 300))
def test_rows_of_like_length_share_a_batch_within_the_budget(
    tokens: list[int], budget: int
) -> None:
    batches = batches_by_length(tokens, budget, torch.device("cpu"))
    order = [i for batch in batches for i in batch]
    assert sorted(order) == [*range(len(tokens))]
    assert [tokens[i] for i in order] == sorted(tokens, reverse=True)
    assert all(len(batch) * tokens[batch[0]] <= budget or len(batch) == 1 for batch in batches)
    assert len(batches_by_length([128] * 16, None, torch.device("cpu"))) == 2, (
        "by default 1,024 tokens on a CPU"
    )


def test_the_fused_head_projects_what_is_trained_and_trains_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the two private names of TRL that `lm_head.install_cpu_head` sets."""
    ids = torch.arange(20, 52).view(2, 16)
    labels = ids.clone()
    labels[:, :12] = -100
    plain, fused = load_model(folder), install_scoring(load_model(folder))
    logits = plain(ids).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten()).backward()

    projected = []
    kernel = trl_utils._ChunkedLogProbFunction.apply

    def counted(hidden: torch.Tensor, *rest: object) -> object:
        projected.append(len(hidden))
        return kernel(hidden, *rest)

    monkeypatch.setattr(trl_utils._ChunkedLogProbFunction, "apply", counted)
    fused(input_ids=ids, labels=labels, use_cache=False, fused_lm_head=True).loss.backward()
    assert projected == [int((labels[:, 1:] != -100).sum())]
    for (name, fused_weight), plain_weight in zip(
        fused.named_parameters(), plain.parameters(), strict=True
    ):
        assert torch.allclose(fused_weight.grad, plain_weight.grad, atol=1e-6), name


def test_weights_that_are_not_finite_are_not_saved(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    model.lm_head.weight.data[3, 3] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        save_model(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_device_that_is_not_there_is_told() -> None:
    if torch.cuda.is_available():
        assert resolve_device("auto").type == "cuda"
    else:
        assert resolve_device("auto").type == "cpu"
        with pytest.raises(UserError, match="sees no CUDA device"):
            resolve_device("cuda")
