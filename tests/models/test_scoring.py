"""Tests of scoring: the fused head gives the model's log-probs and gradients, computed only for labelled positions."""

from pathlib import Path

import pytest
import torch

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
        [alone] = pair_log_probs(scoring, [pair], 3, Precision.fp32)
        start = len(pair.prompt_ids) - 1
        for side, completion in enumerate((pair.chosen_ids, pair.rejected_ids)):
            ids = torch.tensor([pair.prompt_ids + completion])
            scores = plain(ids).logits[0, start:-1].detach().log_softmax(-1)
            expected = scores.gather(-1, torch.tensor(completion)[:, None])[:, 0]
            assert both[side] == pytest.approx(expected.tolist(), abs=1e-5)
            assert both[side] == pytest.approx(alone[side], abs=1e-5)


def test_rows_of_like_length_share_a_batch_within_the_budget() -> None:
    cpu = torch.device("cpu")
    assert batches_by_length([3, 9, 4, 30, 4], 20, cpu) == [[3], [1, 2], [4, 0]]
    assert len(batches_by_length([128] * 16, None, cpu)) == 2, "by default 1,024 tokens on a CPU"


def test_weights_that_are_not_finite_are_not_saved(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    model.lm_head.weight.data[3, 3] = float("nan")
    with pytest.raises(UserError, match=r"diverged.*embed_tokens"):
        save_model(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_device_that_is_not_there_is_told() -> None:
    if torch.cuda.is_available():
        assert resolve_device("auto").type == "cuda"
    else:
        assert resolve_device("auto").type == "cpu"
        with pytest.raises(UserError, match="sees no CUDA device"):
            resolve_device("cuda")
