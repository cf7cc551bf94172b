"""Win rates of a judged comparison: no verdict due to length or chance, and intervals with their nominal coverage."""

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from stages.evaluation.judged import Comparison
from stages.evaluation.win_rates import (
    Comparisons,
    comparison_results,
    detectable,
    people_rate,
    win_rate,
)
from stages.store.records import Judgement
from tests.bench.win_rates import (
    CERTAIN,
    GAIN,
    JUDGES,
    NULLS,
    Judge,
    audited,
    claims,
    covered,
    power_of,
    verdicts,
)
from tests.rows import pool

LONGER_WINS = Judge("longer always wins", longer=CERTAIN, ties=0.0)


def table(won: Any, longer_by: Any = 0, **columns: Any) -> Comparisons:
    """Return comparisons with these outcomes; by default people were not asked and no two answers are alike."""
    won = np.array(won, float)
    nobody, nothing = np.full(len(won), np.nan), np.zeros(len(won))
    filled = {
        "people": nobody,
        "shown_first": nothing,
        "alike": nothing > 0,
        "judge": won,
    } | columns
    return Comparisons(won, np.broadcast_to(longer_by, len(won)), **filled)


def results(c: Comparisons) -> dict[str, Any]:
    return comparison_results(c, 0.95, 0.9)


MANY = pytest.mark.slow
TABLES = [
    (200, 400, 0.5),
    *(pytest.param(2000, *case, marks=MANY) for case in ((100, 0.0), (400, 0.5), (800, 1.0))),
]


@pytest.mark.parametrize(("tables", "prompts", "drift"), TABLES)
@pytest.mark.parametrize("judge", NULLS, ids=lambda judge: judge.name)
def test_equally_good_models_get_few_verdicts(
    judge: Judge, tables: int, prompts: int, drift: float
) -> None:
    share = claims(verdicts(judge, tables, prompts, drift))
    assert share <= 0.065
    if judge == LONGER_WINS:
        assert share <= 0.01


@pytest.mark.parametrize("judge", NULLS, ids=lambda judge: judge.name)
def test_models_that_answer_alike_on_75_of_100_prompts_get_no_more_verdicts(judge: Judge) -> None:
    assert claims(verdicts(judge, 100, 400, 0.5, alike=0.75)) <= 0.065


BETTER = Judge("no lean", gain=GAIN), Judge("leans to longer", longer=1.0, gain=GAIN)


@pytest.mark.parametrize(
    ("judge", "prompts", "drift"), [(BETTER[0], 400, 0.0), *((judge, 800, 1.0) for judge in BETTER)]
)
def test_a_win_rate_of_60_is_found_in_80_of_100_tables(
    judge: Judge, prompts: int, drift: float
) -> None:
    assert verdicts(judge, 250, prompts, drift)["better"] >= 200


def test_without_overlap_of_lengths_there_is_no_length_controlled_rate() -> None:
    rng = np.random.default_rng(0)
    for judge in NULLS:
        assert not claims(verdicts(judge, 50, 800, 2.0))
        figures = results(judge.table(rng, 800, 2.0))
        assert figures["matched"] is None
        assert "longer on 9" in figures["unmatched"]
    # Both signs are frequent, but no difference of one sign is as large as any of the other sign.
    disjoint = results(table(np.tile([1.0, 0.0], 100), np.tile([90, -3], 100)))
    assert disjoint["matched"] is None
    assert "no size" in disjoint["unmatched"]
    assert "19 prompts" in results(table(np.ones(100), np.repeat([9, -9], [81, 19])))["unmatched"]
    assert results(table(np.ones(100), np.repeat([9, -9], [80, 20])))["matched"]


def test_identical_models_have_a_rate_of_exactly_one_half_and_a_narrow_interval() -> None:
    figures = results(table(np.full(300, 0.5), alike=np.full(300, True)))
    assert figures["win_rate"]["mean"] == figures["matched"]["win_rate"]["mean"] == 0.5
    # A win on one prompt in 300 could have been missed, a win on one in 30 could not.
    assert 1 / 600 < figures["win_rate"]["high"] - 0.5 < 1 / 60
    assert figures["win_rate"]["high"] - 0.5 == pytest.approx(0.5 - figures["win_rate"]["low"])
    assert figures["detectable"] >= figures["win_rate"]["high"] - 0.5
    assert figures["effect"] == "no measurable difference"


def test_equal_lengths_keep_their_weight_in_the_length_controlled_rate() -> None:
    """Three answers in four are alike: the controlled rate moves towards one half as much as the plain rate."""
    rng = np.random.default_rng(1)
    judge = Judge("", longer=1.0, gain=1.0)
    some = judge.table(rng, 800, 0.0)
    copies = 2400
    padded = Comparisons(
        np.r_[some.won, np.full(copies, 0.5)],
        np.r_[some.longer_by, np.zeros(copies, int)],
        np.full(800 + copies, np.nan),
        np.r_[some.shown_first, np.zeros(copies, bool)],
        np.repeat([False, True], [800, copies]),
        np.r_[some.judge, np.full(copies, 0.5)],
    )
    alone, together = results(some), results(padded)
    assert together["win_rate"]["mean"] - 0.5 == pytest.approx(
        (alone["win_rate"]["mean"] - 0.5) / 4
    )
    matched = [figures["matched"]["win_rate"]["mean"] - 0.5 for figures in (alone, together)]
    assert matched[1] == pytest.approx(matched[0] / 4, rel=0.05)
    assert together["matched"]["used"] == pytest.approx((3 + alone["matched"]["used"]) / 4)
    assert alone["effect"] == together["effect"] == "better"


def test_a_preference_that_goes_with_length_is_named_as_such() -> None:
    longer = np.repeat([7, -7], [280, 120])
    assert results(table(longer > 0, longer))["effect"] == "preferred, perhaps for length"
    assert results(table(longer < 0, longer))["effect"] == "rejected, perhaps for length"
    assert results(table(longer > 0, longer))["matched"]["win_rate"]["mean"] == 0.5


def test_missing_judgements_are_left_out_and_few_give_no_verdict() -> None:
    won = np.repeat([1.0, np.nan], [19, 81])
    figures = results(table(won))
    assert figures["effect"] == "too few to say"
    assert figures["win_rate"]["mean"] == 1
    assert results(table(np.ones(20)))["effect"] == "better"
    empty = results(table(np.full(5, np.nan)))
    assert empty["effect"] == "too few to say"
    assert (empty["win_rate"]["low"], empty["win_rate"]["high"]) == (0, 1)
    json.dumps(empty, allow_nan=False)


AUDITS = [
    (truth, right, words) for truth in (0.5, 0.6) for right in JUDGES for words in (50, 100, 300)
]
QUICK = [(0.5, (0.8, 0.8), 50), (0.6, (0.9, 0.6), 300)]


@pytest.mark.parametrize(
    ("truth", "right", "words"),
    [*QUICK, *(pytest.param(*case, marks=MANY) for case in AUDITS if case not in QUICK)],
)
def test_the_interval_by_people_and_judge_holds_the_truth(
    truth: float, right: tuple[float, float], words: int
) -> None:
    """Allow four standard errors around 95%; the benchmark of the same name uses 10,000 tables each."""
    tables = 500
    figures = covered(tables, truth, right, words)
    assert figures.together == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / tables) ** 0.5)
    assert figures.width <= 1.02 * figures.width_alone


@pytest.mark.parametrize("right", [(0.5, 0.5), (0.3, 0.3)])
def test_a_judge_that_knows_nothing_does_not_widen_the_interval(right: tuple[float, float]) -> None:
    for words in (50, 300):
        figures = covered(200, 0.5, right, words)
        assert figures.width <= 1.02 * figures.width_alone


@pytest.mark.parametrize("truth", [0.5, 0.7])
def test_people_are_not_asked_about_alike_answers_and_their_rate_counts_them(truth: float) -> None:
    """Half of 800 answers are alike and the judge misses a fifth of the others, which people do not see either."""
    rng, covering, tables = np.random.default_rng(0), 0, 300
    for _ in range(tables):
        c = audited(rng, truth, (0.8, 0.8), 0)
        people = (rng.random(800) < truth).astype(float)
        won = np.where(rng.random(800) < 0.8, people, 1 - people)
        won[rng.random(800) < 0.2] = np.nan
        alike = rng.random(800) < 0.5
        won[alike], people[alike | np.isnan(won) | (rng.random(800) < 0.5)] = 0.5, np.nan
        estimate = people_rate(replace(c, won=won, judge=won, people=people, alike=alike), 0.95)
        assert estimate
        assert estimate["by"] == "people and judge"
        covering += (
            estimate["win_rate"]["low"] <= 0.5 + (truth - 0.5) / 2 <= estimate["win_rate"]["high"]
        )
    assert covering / tables == pytest.approx(0.95, abs=0.04)


def test_verdicts_of_people_that_replace_the_judges_do_not_make_it_another_judge() -> None:
    """A judge that leans to the policy on 2 of 5 prompts, where people decide, except on the 100 that they audit."""
    rng, covering, tables = np.random.default_rng(0), 0, 400
    for _ in range(tables):
        disputed, truth = rng.random(300) < 0.4, rng.random(300) < 0.5
        judge = np.where(
            disputed, rng.random(300) < 0.8, np.where(rng.random(300) < 0.9, truth, ~truth)
        ).astype(float)
        audit = np.arange(300) < 100
        won = np.where(disputed & ~audit, truth, judge)
        estimate = people_rate(table(won, judge=judge, people=np.where(audit, truth, np.nan)), 0.95)
        assert estimate
        covering += estimate["win_rate"]["low"] <= 0.5 <= estimate["win_rate"]["high"]
    assert covering / tables == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / tables) ** 0.5)


def test_few_words_of_people_stand_alone_and_fewer_say_nothing() -> None:
    c = audited(np.random.default_rng(0), 0.6, (0.8, 0.8), 49)
    estimate = people_rate(c, 0.95)
    alone = {"decides": False, "by": "people alone"}
    assert estimate == {"known": 49, "win_rate": asdict(win_rate(c.people[:49])), **alone}
    assert (
        people_rate(replace(c, people=np.where(np.arange(800) < 9, c.people, np.nan)), 0.95) is None
    )
    everybody = people_rate(replace(c, people=c.won), 0.95)  # as the judge
    assert everybody == {
        "known": 800,
        "win_rate": asdict(win_rate(c.won)),
        **alone,
        "decides": True,
    }


def test_people_overrule_the_judge() -> None:
    """The judge always prefers the policy; people, on 200 of 800 prompts, the other model."""
    people = np.where(np.arange(800) < 200, np.arange(800) % 4 == 0, np.nan)
    figures = results(table(np.ones(800), people=people))
    assert figures["people"]["win_rate"]["high"] < 0.5
    assert figures["effect"] == "rejected, perhaps for length"
    few = results(table(np.ones(800), people=np.where(np.arange(800) < 49, 0.0, np.nan)))
    assert few["people"]["win_rate"]["high"] < 0.5, "too few to decide"


def test_every_comparison_without_a_verdict_has_one_reason() -> None:
    candidates = iter(pool(["a", "b"], ["c", "d"], ["e", "e"], ["f", "g"]).candidates)
    sides = [*zip(candidates, candidates, strict=True)]
    errors = {each.candidate_id: "too long" for each in (*sides[0], *sides[2])}
    figures = Comparison(sides, {}, {c.candidate_id: 1.0 for c in sides[3]}, errors, {}).figures
    assert (figures["judged"], figures["ties"]) == (2, 2)
    assert figures["missing"] == {"too long": 1, "no reason given": 1}


def test_who_sees_an_order_of_its_own_has_no_first_answer() -> None:
    policy, other = pool(["a", "b"]).candidates
    for labeler, first in {"human": 0.5, "ensemble": 0.5, "mine": 1.0}.items():
        judgement = Judgement(
            "p0", labeler, preference="a", a=policy.candidate_id, b=other.candidate_id
        )
        assert (
            Comparison([(policy, other)], {"p0": judgement}, {}, {}, {}).shown_first(policy)
            == first
        )


@pytest.mark.parametrize(("prompts", "points"), [(100, 12), (400, 6), (800, 4)])
def test_a_detectable_difference_is_found_in_80_of_100_tables(prompts: int, points: int) -> None:
    assert round(100 * detectable(prompts)) == points
    for ties in (0.0, 0.3):
        assert power_of(prompts, ties, 1000) == pytest.approx(80, abs=5)
    assert detectable(0) == detectable(1) == 0.5
