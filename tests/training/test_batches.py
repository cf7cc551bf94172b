"""Tests of whole batches: packed rows fill them, other rows are skipped in turn, and no row is lost."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trl import SFTTrainer

from stages import dpo
from stages.config.blocks.training import DPO
from stages.config.errors import UserError
from stages.models.contract import load_contract
from stages.objectives.sft import read_rows
from stages.store.records import Example, Pair, load
from stages.store.workspace import SCRATCH, StageDir
from stages.training.batches import EpochSchedule
from stages.training.saving import Checkpoints
from stages.training.token_rows import IGNORED, TokenRows
from tests.helpers import Chain, settings
from tests.stages.test_sft import block, some_rows, train


@pytest.fixture
def inputs(built: Path) -> dict[str, Path]:
    return {
        "base": next((built / "base").glob("*")),
        "data": next((built / "data").glob("*/examples.parquet")).parent,
    }


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 1), (16, 8), (21, 8), (15, 8), (60, 7)])
def test_two_epochs_that_follow_each_other_see_every_row(rows: int, batch_size: int) -> None:
    schedule = EpochSchedule([f"row {i}" for i in range(rows)], batch_size, 0, "sft")
    for number in range(4):
        first = schedule.epoch(number)
        second = schedule.epoch(number + 1)
        assert len(first) == len({*first}) == rows - rows % batch_size
        assert {*first, *second} == {*range(rows)}
        assert schedule.epoch(number) == first


def test_rows_that_fill_no_batch_are_refused() -> None:
    with pytest.raises(UserError, match=r"sft\.batch_size"):
        EpochSchedule(["row"], 2, 0, "sft")


class Reached:
    """Counts the trained tokens that reach the model, and how often each row does."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.tokens, self.rows = 0, Counter[tuple[int, ...]]()
        computed = SFTTrainer.compute_loss

        def counted(trainer: Any, model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
            if trainer.model.training:
                self.tokens += int((batch["labels"][:, 1:] != IGNORED).sum())
                for ids, labels in zip(
                    batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True
                ):
                    self.rows[
                        tuple(i for i, label in zip(ids, labels, strict=True) if label != IGNORED)
                    ] += 1
            return computed(trainer, model, batch, *args, **kwargs)

        patch.setattr(SFTTrainer, "compute_loss", counted)


def tokenized(
    inputs: dict[str, Path], built: Path, tmp_path: Path, count: int | None = None
) -> TokenRows:
    """Return the rows of the first examples for SFT."""
    contract = load_contract(next((built / "sft").glob("*/model")))
    examples = (e for e in load(inputs["data"] / "examples.parquet", Example) if e.split == "sft")
    return read_rows(
        islice(examples, count), contract, block(), StageDir(tmp_path, lambda metrics, step: None)
    ).train


@pytest.mark.extended
@pytest.mark.parametrize(("bins", "batch_size", "length"), [(3, 2, 256), (31, 16, 64)])
def test_packing_loses_no_conversation_to_the_batch(
    bins: int,
    batch_size: int,
    length: int,
    inputs: dict[str, Path],
    built: Path,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    """TRL packs into a number of rows that the batch size does not divide; every trained token reaches the model once
    per epoch."""
    count, packed = bins, 0
    while packed != bins:
        rows = tokenized(inputs, built, tmp_path, count)
        tokens, trained = sum(rows.lengths), sum(rows.trained_counts)
        rows.pack(length, 1)
        packed, count = len(rows), count + 1
    inputs_of_sft = some_rows(inputs, count - 1, tmp_path / "data")
    reached = Reached(monkeypatch)
    cfg = block(packing=True, batch_size=batch_size, max_length=length, epochs=2.0)
    _, metrics, out = train(cfg, inputs_of_sft, tmp_path / "sft")
    assert reached.tokens == 2 * trained
    assert metrics["trained_tokens"] == trained
    assert metrics["tokens"] == 2 * tokens
    assert (metrics["rows_cut"], metrics["rows_unseen"], out.warnings) == (0, 0, [])
    assert metrics["steps"] == 2 * math.ceil(bins / batch_size)


@pytest.mark.parametrize(("epochs", "unseen"), [(1.0, 5), (1.6, None), (2.0, 0)])
def test_rows_left_over_take_turns_and_are_told(
    epochs: float,
    unseen: int | None,
    inputs: dict[str, Path],
    built: Path,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    """Train on 45 rows in batches of 8."""
    rows, inputs_of_sft = (
        tokenized(inputs, built, tmp_path, 45),
        some_rows(inputs, 45, tmp_path / "data"),
    )
    reached = Reached(monkeypatch)
    _, metrics, out = train(block(batch_size=8, epochs=epochs), inputs_of_sft, tmp_path / "sft")
    trained = [tuple(i for i in row["labels"] if i != IGNORED) for row in rows.dataset]
    once = Counter(trained)
    assert reached.rows.total() == 8 * metrics["steps"] == 8 * math.ceil(epochs * 5)
    assert metrics["rows_cut"] == 5
    assert metrics["rows_unseen"] == (unseen if unseen is not None else metrics["rows_unseen"])
    if metrics["rows_unseen"]:
        assert f"{metrics['rows_unseen']} of 45 rows" in out.warnings[0]
    else:
        assert not out.warnings
        assert all(reached.rows[row] >= count for row, count in once.items())


class Stopped(BaseException):
    pass


def pairs_to_skip(built: Path) -> tuple[DPO, dict[str, Path]]:
    """Return DPO's block and inputs, for three epochs of which each skips some pairs."""
    roles = {"policy": "sft", "pairs": "pairs", "reference": "reference"}
    inputs = {role: Chain(built).folder(stage) for role, stage in roles.items()}
    pairs = load(inputs["pairs"] / "pairs.parquet", Pair)
    count = sum(p.split == "train" for p in pairs)
    size = next(size for size in (5, 6, 7) if count % size)
    return replace(settings("recipe=tiny").dpo, batch_size=size, epochs=3.0), inputs


@pytest.mark.extended
def test_a_resume_within_the_second_epoch_goes_on_as_it_would_have(
    built: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Compare bit by bit: remaining rows, the learning rate of a short warm-up, and validation before the first
    step."""
    cfg, inputs = pairs_to_skip(built)
    cfg = replace(cfg, runtime=replace(cfg.runtime, save_steps=7))

    def run(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], StageDir]:
        folder.mkdir(exist_ok=True)
        out = StageDir(folder, lambda metrics, step: None)
        metrics = dpo.run(cfg, inputs, out)
        return load_file(folder / "model" / "model.safetensors"), metrics, out

    whole, metrics, whole_out = run(tmp_path / "whole")
    assert metrics["pairs_cut"] > 0
    assert 7 % (metrics["steps"] // 3) != 0, "within an epoch"
    with monkeypatch.context() as patch:
        stepped = Checkpoints.on_step_end

        def stop(self: Any, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
            stepped(self, args, state, *rest, **kwargs)
            if state.global_step == 9:
                raise Stopped

        patch.setattr(Checkpoints, "on_step_end", stop)
        with pytest.raises(Stopped):
            run(tmp_path / "resumed")
    assert (tmp_path / "resumed" / SCRATCH / "checkpoints" / "checkpoint-7").exists()
    resumed, resumed_metrics, resumed_out = run(tmp_path / "resumed")
    assert all(torch.equal(whole[tensor], resumed[tensor]) for tensor in whole)
    assert resumed_out.warnings == whole_out.warnings
    assert resumed_metrics == metrics
    curve, resumed_curve = (
        [
            (p["step"], p.get("eval_loss"), p.get("num_tokens"))
            for p in map(json.loads, (out / "curves.jsonl").read_text().splitlines())
        ]
        for out in (whole_out, resumed_out)
    )
    assert curve == resumed_curve, "each step once, and tokens counted on"
    assert curve[0][0] == 0, "validated before the first step"
