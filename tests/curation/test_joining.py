"""Joined sources: a prompt belongs to one split, and each row is used as often as its source says."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stages.config.blocks.data import Mixture, Source, plan_amounts
from stages.curation.joining import (
    SourceRows,
    SplitLedger,
    draw_counts,
    gather_rows,
    shuffled,
)
from stages.store.records import Example, content_id, save
from tests.helpers import refused

SOURCES = [Source(path) for path in ("a", "b", "c")]


def row(prompt: int, answer: int, split: str) -> Example:
    return Example(content_id(prompt), [], str(answer), "s", "t", split)


def total(sources: list[Source], rows: list[int], **mixture: object) -> list[int]:
    return [amount.total for amount in plan_amounts(sources, Mixture(**mixture), rows)]


def test_amounts_are_proportional_with_a_cap_by_quota_epochs_and_weight() -> None:
    assert total(SOURCES, [10, 200, 3000]) == [10, 200, 3000]
    assert total(SOURCES, [10, 200, 3000], cap=500) == [10, 200, 500]
    tasks = [Source("a", task="nli"), Source("b", task="nli"), Source("c")]
    assert total(tasks, [100, 300, 50], quotas={"nli": 101}) == [25, 76, 50]
    assert total(tasks, [100, 300, 50], quotas={"nli": 1000}) == [100, 300, 50]
    assert total([Source("a", epochs=2.5), Source("b", epochs=0.1)], [10, 50]) == [25, 5]
    weighed = [Source("a", weight=3.0), Source("b", weight=1.0)]
    # the source that is scarcest for its weight is used once
    assert total(weighed, [100, 100]) == [100, 33]


def test_rows_are_drawn_as_often_as_configured_and_stay_drawn() -> None:
    ids = np.random.default_rng(0).integers(0, 2**63, 1000).astype(np.uint64)
    [half] = plan_amounts([Source("a", epochs=0.5)], Mixture(), [1000])
    [more] = plan_amounts([Source("a", epochs=1.3)], Mixture(), [1000])
    few = draw_counts(ids, half, 0)
    many = draw_counts(ids, more, 0)
    assert Counter(few.tolist()) == {0: 500, 1: 500}
    assert Counter(many.tolist()) == {1: 700, 2: 300}
    assert few[many == 2].all(), "a row that was drawn stays drawn"
    backwards = draw_counts(ids[::-1], half, 0)[::-1]
    assert (backwards == few).all(), "the order of the ids does not matter"
    assert len(set(shuffled(ids, 0).tolist())) == len(ids)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources=[{path: a, weight: 1}, {path: b}]", "data.sources[1].weight is missing"),
        ("data.sources=[{path: a, epochs: 0}]", "data.sources[0].epochs=0.0: "),
        ("data.mixture.cap=0", "data.mixture.cap=0: the value must be from 1"),
    ],
)
def test_a_mixture_without_effect_is_refused(override: str, message: str) -> None:
    assert refused("recipe=tiny", override).startswith(message)


def test_a_quota_needs_an_existing_task() -> None:
    source = "data.sources=[{path: films.csv, task: sentiment}]"
    message = refused("recipe=tiny", source, "data.mixture.quotas={sentimnt: 5}")
    assert "data.mixture.quotas" in message
    assert "Did you mean 'sentiment'" in message


def test_rows_of_sft_alone_are_repeated_and_each_repetition_has_its_own_id(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    save(file, [row(i, i, "sft" if i % 4 else "validation") for i in range(20)], Example)
    ledger = SplitLedger(gather_rows([], [file]))
    source = Source("a", epochs=3.0)
    part = SourceRows.select(source, file, np.arange(20), ledger, None)
    [part.amount] = plan_amounts([source], Mixture(), [len(part.sft_rows(ledger))])
    assert part.counts(ledger) == {"sft": 45, "validation": 5}
    written = [each for table in part.tables(ledger, 0) for each in table.to_pylist()]
    assert Counter(each["split"] for each in written) == part.counts(ledger)
    assert Counter(each["reference"] for each in written if each["split"] == "sft") == {
        str(i): 3 for i in range(20) if i % 4
    }
    assert len({each["id"] for each in written}) == len(written)
