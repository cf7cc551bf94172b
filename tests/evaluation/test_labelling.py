"""Properties of a labelling, measured on labellers with a known length bias."""

import random
from collections.abc import Callable, Sequence
from dataclasses import astuple

import numpy as np
import pytest

from stages.evaluation.agreement import share as independent
from stages.evaluation.intervals import Interval
from stages.evaluation.labelling import Labelling, share
from stages.store.records import Judgement
from tests.rows import pool

LENGTHS = [[random.Random(i * 7 + j).randint(1, 40) for j in range(3)] for i in range(300)]
POOL = pool(
    *([f"{'word ' * (length - 1)}{j}" for j, length in enumerate(each)] for each in LENGTHS)
)


def labelled(score: Callable[[int, random.Random], float], pairwise: bool) -> Labelling:
    """Label every candidate with a score of its length in words, or with the preferences that follow from scores."""
    rng, judgements = random.Random(0), list[Judgement]()
    for prompt, candidates in POOL.by_prompt():
        scores = {c.candidate_id: score(c.n_tokens, rng) for c in candidates}
        if pairwise:
            for a, b in [(a, b) for a in scores for b in scores if a < b]:
                word = "tie" if scores[a] == scores[b] else "a" if scores[a] > scores[b] else "b"
                judgements.append(Judgement(prompt.id, "x", a=a, b=b, preference=word))
        else:
            judgements += [Judgement(prompt.id, "x", c, score=s) for c, s in scores.items()]
    return Labelling(
        {p.id: p for p in POOL.prompts}, {c.candidate_id: c for c in POOL.candidates}, judgements
    )


@pytest.mark.parametrize("pairwise", [True, False])
def test_a_leaning_to_length_is_found_and_none_is_where_there_is_none(pairwise: bool) -> None:
    lover, coin = (
        labelled(f, pairwise) for f in (lambda n, _: n / 40, lambda _, rng: rng.random())
    )
    share_longer = lover.longer()
    assert share_longer and share_longer.rate.mean == 1
    assert share_longer.total == sum(
        len({*pair}) == 2
        for each in LENGTHS
        for pair in zip(each, [*each[1:], each[0]], strict=True)
    )
    by_chance = coin.longer()
    assert by_chance and by_chance.rate.low < 0.5 < by_chance.rate.high


def test_what_tells_nothing_apart_is_counted_by_prompts() -> None:
    alike = labelled(lambda n, _: float(n > 20), pairwise=False)
    undecided = alike.undecided()
    assert undecided and undecided.total == len(LENGTHS)
    assert undecided.rate.mean == pytest.approx(
        np.mean([len({n > 20 for n in each}) == 1 for each in LENGTHS])
    )
    tied = labelled(lambda n, _: 1.0, pairwise=True)
    assert [s and s.rate.mean for s in (tied.ties(), tied.undecided())] == [
        1,
        1,
    ] and tied.longer() is None


def test_a_task_has_the_judgements_of_its_prompts() -> None:
    whole = labelled(lambda n, _: n / 40, pairwise=True)
    for i, prompt in enumerate(whole.prompts.values()):
        prompt.task = "even" if i % 2 == 0 else "odd + third"
    parts = whole.by_task()
    assert {task: len(part.judgements) for task, part in parts.items()} == {
        "even": 450,
        "odd": 450,
        "third": 450,
    }


def test_outcomes_of_one_prompt_are_one_draw() -> None:
    hits, prompts = [i % 3 == 0 for i in range(100)], [str(i) for i in range(100)]
    once, often = share(hits, prompts), share(hits * 20, prompts * 20)
    assert once and often
    assert astuple(often.rate) == pytest.approx(astuple(once.rate)) and often.total == 2000
    assert astuple(once.rate) == pytest.approx(astuple(independent(sum(hits), 100)), abs=0.002)


def bounds(rate: Interval) -> tuple[float, float]:
    return rate.low, rate.high


def covered(
    truth: float, share_of: Callable[[Sequence[bool], Sequence[str]], tuple[float, float]]
) -> float:
    """Return the coverage of an interval if a prompt's eight outcomes share a probability (beta-binomial)."""
    rng, inside, runs = np.random.default_rng(0), 0, 400
    prompts = [str(i) for i in range(60) for _ in range(8)]
    for _ in range(runs):
        leaning = rng.beta(2 * truth, 2 * (1 - truth), 60)
        low, high = share_of(
            [bool(hit) for hit in rng.random(480) < np.repeat(leaning, 8)], prompts
        )
        inside += low <= truth <= high
    return inside / runs


def test_the_interval_covers_the_truth_and_one_that_forgets_prompts_does_not() -> None:
    for truth in (0.6, 0.9):

        def with_prompts(hits, prompts):
            return bounds(share(hits, prompts).rate)  # type: ignore[union-attr]

        assert 0.92 <= covered(truth, with_prompts) <= 0.98
        assert covered(truth, lambda hits, _: bounds(independent(sum(hits), len(hits)))) < 0.8
