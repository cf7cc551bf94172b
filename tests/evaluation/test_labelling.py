"""Properties of a labelling, measured on labellers with a known length bias."""

import random
from collections.abc import Callable
from dataclasses import astuple
from itertools import combinations

import numpy as np
import pytest

from stages.evaluation.estimate import Share
from stages.evaluation.labelling import Labelling, share
from stages.store.records import Judgement
from tests.rows import pool

LENGTHS = [[random.Random(i * 7 + j).randint(1, 40) for j in range(3)] for i in range(300)]
POOL = pool(
    *([f"{'word ' * (length - 1)}{j}" for j, length in enumerate(each)] for each in LENGTHS)
)


def labelled(score: Callable[[int, random.Random], float], pairwise: bool) -> Labelling:
    """Label every candidate with a score of its length in words, or with the preferences that follow from scores."""
    rng = random.Random(0)
    judgements = list[Judgement]()
    for prompt, candidates in POOL.by_prompt():
        scores = {c.candidate_id: score(c.n_tokens, rng) for c in candidates}
        if not pairwise:
            judgements += [Judgement(prompt.id, "x", name, score=scores[name]) for name in scores]
            continue
        for a, b in combinations(sorted(scores), 2):
            words = {0: "tie", 1: "a", -1: "b"}
            word = words[int(np.sign(scores[a] - scores[b]))]
            judgements.append(Judgement(prompt.id, "x", a=a, b=b, preference=word))
    prompts = {p.id: p for p in POOL.prompts}
    return Labelling(prompts, {c.candidate_id: c for c in POOL.candidates}, judgements)


@pytest.mark.parametrize("pairwise", [True, False])
def test_a_leaning_to_length_is_found_and_none_is_where_there_is_none(pairwise: bool) -> None:
    by_length = labelled(lambda length, _: length / 40, pairwise).longer()
    assert by_length is not None
    assert by_length.rate.mean == 1
    by_chance = labelled(lambda _, rng: rng.random(), pairwise).longer()
    assert by_chance is not None
    assert by_chance.rate.low < 0.5 < by_chance.rate.high


def test_what_tells_nothing_apart_is_counted_by_prompts() -> None:
    undecided = labelled(lambda length, _: float(length > 20), pairwise=False).undecided()
    alike = [len({length > 20 for length in lengths}) == 1 for lengths in LENGTHS]
    assert undecided is not None
    assert (undecided.total, undecided.rate.mean) == (len(LENGTHS), pytest.approx(np.mean(alike)))
    tied = labelled(lambda *_: 1.0, pairwise=True)
    ties = tied.ties()
    assert ties is not None
    assert ties.rate.mean == 1
    assert tied.longer() is None


def test_outcomes_of_one_prompt_are_one_draw() -> None:
    hits = [i % 3 == 0 for i in range(100)]
    prompts = [str(i) for i in range(100)]
    once = share(hits, prompts)
    often = share(hits * 20, prompts * 20)
    assert once and often
    assert astuple(often.rate) == pytest.approx(astuple(once.rate))
    assert often.total == 2000


@pytest.mark.parametrize("truth", [0.6, 0.9])
def test_the_interval_covers_the_truth_and_one_that_forgets_prompts_does_not(truth: float) -> None:
    """A prompt's eight outcomes share a probability (beta-binomial)."""
    rng = np.random.default_rng(0)
    runs = 400
    inside = 0
    inside_plain = 0
    prompts = [str(i // 8) for i in range(480)]
    for _ in range(runs):
        chances = rng.beta(2 * truth, 2 * (1 - truth), 60)
        hits = (rng.random(480) < np.repeat(chances, 8)).tolist()
        with_prompts = share(hits, prompts)
        plain = Share(float(np.mean(hits)), 0.0, 479, 480).interval()
        assert with_prompts is not None
        inside += with_prompts.rate.low <= truth <= with_prompts.rate.high
        inside_plain += plain.low <= truth <= plain.high
    assert 0.92 <= inside / runs <= 0.98
    assert inside_plain / runs < 0.8
