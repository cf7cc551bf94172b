"""Sources that come together: no prompt in two splits, no answer twice, and how often rows come."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stages.config.blocks.data import Mixture, Source
from stages.curation.joining import SplitLedger, draw_counts, gathered, shuffled
from stages.curation.mixing import amounts
from stages.store.records import Example, SourceRow, content_id, save
from tests.helpers import refused

SOURCES = [Source(path) for path in ("a", "b", "c")]


def row(prompt: int, answer: int, split: str) -> Example:
    return Example(content_id(prompt), [], str(answer), "s", "t", split)


def one_by_one(generated: list[Example], sources: list[list[Example]]) -> list[tuple[int, int, str]]:
    """The rule itself, row by row: source, place and id of rows that stay."""
    owner = {e.id: e.split for e in generated}
    answered, kept = {content_id(e.id, e.reference) for e in generated}, []
    for number, rows in enumerate(sources):
        for place, e in enumerate(rows):
            pair = content_id(e.id, e.reference)
            if e.id not in owner:
                kept.append((number, place, e.id))
            elif owner[e.id] == e.split == "sft" and pair not in answered:
                kept.append((number, place, pair))
            else:
                continue
            owner.setdefault(e.id, e.split)
            answered.add(pair)
    return kept


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_stay_are_those_of_the_rule(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    splits = ("sft", "sft", "validation", "test")
    sources = [[row(rng.randrange(60), rng.randrange(3), rng.choice(splits)) for _ in range(80)] for _ in range(3)]
    generated = [row(i, 0, rng.choice(splits)) for i in range(10)]
    files = [tmp_path / f"{i}.parquet" for i in range(3)]
    for file, rows in zip(files, sources, strict=True):
        save(file, [SourceRow(**vars(e)) for e in rows], SourceRow)
    rows = gathered(generated, files)
    taken, found = SplitLedger(rows), []
    taken.hold(np.arange(len(generated)))
    for number, part in enumerate(rows.parts):
        fresh = taken.fresh(np.arange(part.start, part.stop))
        taken.hold(fresh)
        found += [(number, int(i) - part.start, f"{int(taken.names[i]):016x}") for i in fresh]
    assert found == one_by_one(generated, sources)
    assert 20 < len(found) < 200


def test_a_drawn_second_answer_takes_its_prompt(tmp_path: Path) -> None:
    """Of a source that brings one row of two, another split gets no prompt that this one has."""
    both, later = [row(1, 0, "sft"), row(1, 1, "sft")], [row(1, 2, "validation")]
    for file, rows in (("a", both), ("b", later)):
        save(tmp_path / file, [SourceRow(**vars(e)) for e in rows], SourceRow)
    rows = gathered([], [tmp_path / "a", tmp_path / "b"])
    taken = SplitLedger(rows)
    drawn = taken.drawn(taken.fresh(np.arange(2)), 1)
    taken.hold(drawn)
    assert len(drawn) == 1
    assert len(taken.fresh(np.arange(2, 3))) == 0


def total(sources: list[Source], rows: list[int], **mixture: object) -> list[int]:
    return [amount.total for amount in amounts(sources, Mixture(**mixture), rows)]


def test_amounts_are_proportional_with_a_cap_by_quota_epochs_and_weight() -> None:
    assert total(SOURCES, [10, 200, 3000]) == [10, 200, 3000]
    assert total(SOURCES, [10, 200, 3000], cap=500) == [10, 200, 500]
    tasks = [Source("a", task="nli"), Source("b", task="nli"), Source("c")]
    assert total(tasks, [100, 300, 50], quotas={"nli": 101}) == [25, 76, 50]
    assert total(tasks, [100, 300, 50], quotas={"nli": 1000}) == [100, 300, 50]
    three = [Source(name, task="nli") for name in "abc"]
    assert total(three, [334, 333, 333], quotas={"nli": 100}) == [34, 33, 33], "of 33.4, 33.3 and 33.3"
    assert total([Source("a", epochs=2.5), Source("b", epochs=0.1)], [10, 50]) == [25, 5]
    weighed = [Source("a", weight=3.0), Source("b", weight=1.0)]
    assert total(weighed, [100, 100]) == [100, 33]  # the scarcest for its share comes once
    assert total([Source("a", weight=3.0, epochs=2.0), Source("b", weight=1.0)], [100, 100]) == [200, 67]


@pytest.mark.parametrize("seed", range(20))
def test_a_quota_is_met_and_a_source_with_more_rows_brings_no_fewer(seed: int) -> None:
    draw = random.Random(seed)
    rows = [draw.randint(0, 400) for _ in range(draw.randint(1, 9))]
    quota = draw.randint(1, 500)
    shares = total([Source(str(i), task="nli") for i in range(len(rows))], rows, quotas={"nli": quota})
    assert sum(shares) == min(quota, sum(rows))
    for n, share in zip(rows, shares, strict=True):
        assert abs(share - n * min(1.0, quota / max(1, sum(rows)))) < 1
    in_order = [share for _, share in sorted(zip(rows, shares, strict=True))]
    assert in_order == sorted(in_order)


def test_rows_come_as_often_as_told_and_stay_when_more_come() -> None:
    ids = np.random.default_rng(0).integers(0, 2**63, 1000).astype(np.uint64)
    [half], [more] = (amounts([Source("a", epochs=e)], Mixture(), [1000]) for e in (0.5, 1.3))
    few, many = draw_counts(ids, half, 0), draw_counts(ids, more, 0)
    assert Counter(few.tolist()) == {0: 500, 1: 500}
    assert Counter(many.tolist()) == {1: 700, 2: 300}
    assert set(np.flatnonzero(many == 2)) < set(np.flatnonzero(few))
    backwards = draw_counts(ids[::-1], half, 0)[::-1]
    assert (backwards == few).all(), "whatever the order"
    assert (draw_counts(ids, half, 1) != few).any(), "another seed draws others"
    assert len(set(shuffled(ids, 0).tolist())) == len(ids)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.sources=[{path: a, weight: 1}, {path: b}]", "data.sources[1].weight is missing"),
        ("data.sources=[{path: a, epochs: 2, splits: {test: 1.0}}]", "data.sources[0].epochs is for rows"),
        ("data.sources=[{path: a, epochs: 0}]", "data.sources[0].epochs must be positive"),
        ("outside=[{path: a, check: label, weight: 2}]", "outside[0].weight is for rows"),
        ("data.mixture.cap=100", "data.mixture mixes rows of data.sources for sft, and there are none"),
        ("data.mixture.cap=0", "data.mixture.cap must be from 1"),
    ],
)
def test_what_mixes_nothing_is_refused(override: str, told: str) -> None:
    assert refused("recipe=tiny", override).startswith(told)


def test_a_quota_is_of_a_task_that_there_is() -> None:
    source = "data.sources=[{path: films.csv, task: sentiment}]"
    told = refused("recipe=tiny", source, "data.mixture.quotas={sentimnt: 5}")
    assert "data.mixture.quotas" in told
    assert "Did you mean 'sentiment'" in told
    assert "at least 1" in refused("recipe=tiny", source, "data.mixture.quotas={sentiment: 0}")
