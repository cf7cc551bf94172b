"""Best of n by a learnt score, against an enumeration of all draws, and the warnings if the checks do not rise."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from statistics import fmean

import pytest

from stages.evaluation.learnt_scores import best_of_n, curve
from stages.store.records import Candidate, Check, Example, Judgement
from tests.rows import candidate, prompt


def test_the_best_of_n_is_what_all_draws_give() -> None:
    rng = random.Random(0)
    graded = [(score, rng.random()) for score in rng.sample(range(100), 6)]
    points = curve(graded)
    assert [*points] == [1, 2, 4, 6]
    for n, point in points.items():
        best = [max(draw) for draw in combinations(graded, n)]
        assert point == pytest.approx((fmean(s for s, _ in best), fmean(c for _, c in best)))


def pool(score: Callable[[int], float]) -> tuple[list[Judgement], list[Example], list[Candidate]]:
    """Forty prompts with eight candidates that are numbers from 0 to 7. `score`: a candidate's, by its number."""
    check = Check("keywords", {})
    examples = [prompt(f"p{i}", checks=[check]) for i in range(40)]
    candidates = [candidate(e.id, str(k), k) for e in examples for k in range(8)]
    judgements = list[Judgement]()
    for c in candidates:
        judgements.append(Judgement(c.prompt_id, "", c.candidate_id, score=score(int(c.text))))
    return judgements, examples, candidates


@pytest.mark.parametrize(
    ("score", "clause"),
    [
        (lambda k: min(k, 4) / 8, ""),  # rises with the checks, then stays level
        (lambda k: (7 - k) / 8, "fewer from 1 on"),
        (lambda k: 0.5, "the score rises and the checks do not"),
    ],
    ids=["right", "wrong", "blind"],
)
def test_a_score_that_rises_without_the_checks_is_told(
    score: Callable[[int], float], clause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks accept numbers from 4 on."""
    share_passed = "stages.evaluation.learnt_scores.share_passed"
    monkeypatch.setattr(share_passed, lambda checks, text: float(int(text) >= 4))
    figures, warning = best_of_n(*pool(score))
    assert [*figures["best_of"]] == ["1", "2", "4", "8"]
    assert figures["best_of"]["1"]["checks"] == pytest.approx(0.5)
    assert clause in warning
    assert bool(clause) == bool(warning)


def test_without_checks_nothing_is_watched() -> None:
    judgements, examples, candidates = pool(lambda k: k / 8)
    bare = [replace(example, checks=[]) for example in examples]
    assert best_of_n(judgements, bare, candidates) == ({}, "")
