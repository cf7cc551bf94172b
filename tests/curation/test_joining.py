"""Joined sources: no prompt in two splits, no answer twice, and the number of uses of each row."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stages.config.blocks.data import Mixture, Source, plan_amounts
from stages.curation.joining import SplitLedger, draw_counts, gather_rows, shuffled
from stages.store.records import Example, SourceRow, content_id, save
from tests.helpers import refused

SOURCES = [Source(path) for path in ("a", "b", "c")]


def row(prompt: int, answer: int, split: str) -> Example:
    return Example(content_id(prompt), [], str(answer), "s", "t", split)


def one_by_one(
    generated: list[Example], sources: list[list[Example]]
) -> list[tuple[int, int, str]]:
    """Return source, place and id of the rows that stay, by a plain loop over the rows."""
    owner = {e.id: e.split for e in generated}
    answered, expected = {content_id(e.id, e.reference) for e in generated}, []
    for number, rows in enumerate(sources):
        for place, e in enumerate(rows):
            pair = content_id(e.id, e.reference)
            if e.id not in owner:
                expected.append((number, place, e.id))
            elif owner[e.id] == e.split == "sft" and pair not in answered:
                expected.append((number, place, pair))
            else:
                continue
            owner.setdefault(e.id, e.split)
            answered.add(pair)
    return expected


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_stay_equal_those_of_a_plain_loop(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    splits = ("sft", "sft", "validation", "test")
    sources = [
        [row(rng.randrange(60), rng.randrange(3), rng.choice(splits)) for _ in range(80)]
        for _ in range(3)
    ]
    generated = [row(i, 0, rng.choice(splits)) for i in range(10)]
    files = [tmp_path / f"{i}.parquet" for i in range(3)]
    for file, rows in zip(files, sources, strict=True):
        save(file, [SourceRow(**vars(e)) for e in rows], SourceRow)
    rows = gather_rows(generated, files)
    ledger, published = SplitLedger(rows), []
    ledger.claim(np.arange(len(generated)))
    for number, part in enumerate(rows.slices):
        fresh = ledger.new_rows(np.arange(part.start, part.stop))
        ledger.claim(fresh)
        published += [(number, int(i) - part.start, f"{int(ledger.names[i]):016x}") for i in fresh]
    assert published == one_by_one(generated, sources)
    assert 20 < len(published) < 200


def test_a_drawn_second_answer_takes_its_prompt(tmp_path: Path) -> None:
    """Claim the prompt of a drawn row for its split, if the source may contribute only one of two rows."""
    both, later = [row(1, 0, "sft"), row(1, 1, "sft")], [row(1, 2, "validation")]
    for file, rows in (("a", both), ("b", later)):
        save(tmp_path / file, [SourceRow(**vars(e)) for e in rows], SourceRow)
    rows = gather_rows([], [tmp_path / "a", tmp_path / "b"])
    ledger = SplitLedger(rows)
    drawn = ledger.draw(ledger.new_rows(np.arange(2)), 1)
    ledger.claim(drawn)
    assert len(drawn) == 1
    assert len(ledger.new_rows(np.arange(2, 3))) == 0


def total(sources: list[Source], rows: list[int], **mixture: object) -> list[int]:
    return [amount.total for amount in plan_amounts(sources, Mixture(**mixture), rows)]


def test_amounts_are_proportional_with_a_cap_by_quota_epochs_and_weight() -> None:
    assert total(SOURCES, [10, 200, 3000]) == [10, 200, 3000]
    assert total(SOURCES, [10, 200, 3000], cap=500) == [10, 200, 500]
    tasks = [Source("a", task="nli"), Source("b", task="nli"), Source("c")]
    assert total(tasks, [100, 300, 50], quotas={"nli": 101}) == [25, 76, 50]
    assert total(tasks, [100, 300, 50], quotas={"nli": 1000}) == [100, 300, 50]
    three = [Source(name, task="nli") for name in "abc"]
    assert total(three, [334, 333, 333], quotas={"nli": 100}) == [34, 33, 33], (
        "shares of 33.4, 33.3 and 33.3"
    )
    assert total([Source("a", epochs=2.5), Source("b", epochs=0.1)], [10, 50]) == [25, 5]
    weighed = [Source("a", weight=3.0), Source("b", weight=1.0)]
    # the source that is scarcest for its weight is used once
    assert total(weighed, [100, 100]) == [100, 33]
    assert total([Source("a", weight=3.0, epochs=2.0), Source("b", weight=1.0)], [100, 100]) == [
        200,
        67,
    ]


@pytest.mark.parametrize("seed", range(20))
def test_a_quota_is_met_and_a_larger_source_contributes_no_less(seed: int) -> None:
    draw = random.Random(seed)
    rows = [draw.randint(0, 400) for _ in range(draw.randint(1, 9))]
    quota = draw.randint(1, 500)
    shares = total(
        [Source(str(i), task="nli") for i in range(len(rows))], rows, quotas={"nli": quota}
    )
    assert sum(shares) == min(quota, sum(rows))
    for n, share in zip(rows, shares, strict=True):
        assert abs(share - n * min(1.0, quota / max(1, sum(rows)))) < 1
    in_order = [share for _, share in sorted(zip(rows, shares, strict=True))]
    assert in_order == sorted(in_order)


def test_rows_are_drawn_as_often_as_configured_and_stay_drawn() -> None:
    ids = np.random.default_rng(0).integers(0, 2**63, 1000).astype(np.uint64)
    [half], [more] = (plan_amounts([Source("a", epochs=e)], Mixture(), [1000]) for e in (0.5, 1.3))
    few, many = draw_counts(ids, half, 0), draw_counts(ids, more, 0)
    assert Counter(few.tolist()) == {0: 500, 1: 500}
    assert Counter(many.tolist()) == {1: 700, 2: 300}
    assert set(np.flatnonzero(many == 2)) < set(np.flatnonzero(few))
    backwards = draw_counts(ids[::-1], half, 0)[::-1]
    assert (backwards == few).all(), "the order of the ids does not matter"
    assert (draw_counts(ids, half, 1) != few).any(), "another seed draws other rows"
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
    assert "at least 1" in refused("recipe=tiny", source, "data.mixture.quotas={sentiment: 0}")
