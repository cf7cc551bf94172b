"""Best of n by a learnt score, against an enumeration of all draws, and the warnings if the checks do not rise."""

import random
from itertools import combinations
from statistics import fmean

import pytest

from stages.evaluation.learnt_scores import best_of_n, curve, length_warning
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


def test_equal_scores_share_their_checks() -> None:
    assert curve([(1.0, 0.0), (1.0, 1.0)])[2] == (1.0, 0.5)


def pool(
    score: object, prompts: int = 40
) -> tuple[list[Judgement], list[Example], list[Candidate]]:
    """Build prompts with eight candidates that repeat a word 0 to 7 times; a check demands at least four times.

    `score`: the candidate's score as a function of that number.
    """
    check = Check("keywords", {})
    examples = [prompt(f"p{i}", checks=[check]) for i in range(prompts)]
    candidates = [candidate(e.id, str(k), k) for e in examples for k in range(8)]
    judged = [
        Judgement(c.prompt_id, "", c.candidate_id, score=score(int(c.text))) for c in candidates
    ]  # type: ignore[operator]
    return judged, examples, candidates


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
    score: object, clause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "stages.evaluation.learnt_scores.share_passed", lambda checks, text: float(int(text) >= 4)
    )
    figures, warning = best_of_n(*pool(score))
    assert [*figures["best_of"]] == ["1", "2", "4", "8"] and figures["best_of_prompts"] == 40
    assert figures["best_of"]["1"]["checks"] == pytest.approx(0.5)
    assert clause in warning and bool(clause) == bool(warning)


def test_without_checks_nothing_is_watched() -> None:
    judged, examples, candidates = pool(lambda k: k / 8, prompts=2)
    for example in examples:
        example.checks = []
    assert best_of_n(judged, examples, candidates) == ({}, "")


def test_scores_that_go_with_length_are_told() -> None:
    assert length_warning(None) == length_warning(0.3) == ""
    assert "shorter answers are preferred" in length_warning(-0.6)
