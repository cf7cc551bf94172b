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
    AUDITS,
    BETTER,
    CERTAIN,
    NULLS,
    Judge,
    audited,
    claims,
    covered,
    verdicts,
)
from tests.rows import pool

LONGER_WINS = Judge("longer always wins", longer=CERTAIN, ties=0.0)


def table(won: Any, longer_by: Any = 0, **columns: Any) -> Comparisons:
    """Return comparisons with these outcomes; by default people were not asked and no two answers are alike."""
    won = np.array(won, float)
    nobody = np.full(len(won), np.nan)
    nothing = np.zeros(len(won))
    filled = {
        "people": nobody,
        "shown_first": nothing,
        "alike": nothing > 0,
        "judge": won,
    } | columns
    return Comparisons(won, np.broadcast_to(longer_by, len(won)), **filled)


def results(c: Comparisons) -> dict[str, Any]:
    return comparison_results(c, 0.95, 0.9)


@pytest.mark.parametrize("judge", NULLS, ids=lambda judge: judge.name)
def test_equally_good_models_get_few_verdicts(judge: Judge) -> None:
    share = claims(verdicts(judge, tables=200, prompts=400, drift=0.5))
    assert share <= (0.01 if judge == LONGER_WINS else 0.065)
    assert not claims(verdicts(judge, tables=20, prompts=800, drift=2.0))


def test_a_win_rate_of_60_is_found_in_80_of_100_tables() -> None:
    assert verdicts(BETTER, tables=250, prompts=400, drift=0.0)["better"] >= 200


def test_without_overlap_of_lengths_there_is_no_length_controlled_rate() -> None:
    # Both signs are frequent, but no difference of one sign is as large as any of the other sign.
    disjoint = results(table(np.tile([1.0, 0.0], 100), np.tile([90, -3], 100)))
    assert disjoint["matched"] is None
    assert disjoint["unmatched"]
    for shorter, is_matched in ((19, False), (20, True)):
        longer_by = np.repeat([9, -9], [100 - shorter, shorter])
        assert bool(results(table(np.ones(100), longer_by))["matched"]) == is_matched


def test_identical_models_have_a_rate_of_exactly_one_half_and_a_narrow_interval() -> None:
    figures = results(table(np.full(300, 0.5), alike=np.full(300, True)))
    rate = figures["win_rate"]
    assert rate["mean"] == figures["matched"]["win_rate"]["mean"] == 0.5
    # A win on one prompt in 300 could have been missed, a win on one in 30 could not.
    assert 1 / 600 < rate["high"] - 0.5 < 1 / 60
    assert figures["detectable"] >= rate["high"] - 0.5
    assert figures["effect"] == "no measurable difference"


def test_a_preference_that_goes_with_length_is_named_as_such() -> None:
    longer = np.repeat([7, -7], [280, 120])
    assert results(table(longer > 0, longer))["effect"] == "preferred, perhaps for length"
    assert results(table(longer < 0, longer))["effect"] == "rejected, perhaps for length"
    assert results(table(longer > 0, longer))["matched"]["win_rate"]["mean"] == 0.5


def test_missing_judgements_are_left_out_and_few_give_no_verdict() -> None:
    figures = results(table(np.repeat([1.0, np.nan], [19, 81])))
    assert figures["effect"] == "too few to say"
    assert figures["win_rate"]["mean"] == 1
    assert results(table(np.ones(20)))["effect"] == "better"
    json.dumps(results(table(np.full(5, np.nan))), allow_nan=False)


@pytest.mark.parametrize(("truth", "right", "words"), AUDITS)
def test_the_interval_by_people_and_judge_holds_the_truth(
    truth: float, right: tuple[float, float], words: int
) -> None:
    """Allow four standard errors around 95%."""
    tables = 300
    figures = covered(tables, truth, right, words)
    assert figures.together == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / tables) ** 0.5)
    assert figures.width <= 1.02 * figures.width_alone


def test_few_words_of_people_stand_alone_and_fewer_say_nothing() -> None:
    comparisons = audited(np.random.default_rng(0), 0.6, (0.8, 0.8), 49)
    estimate = people_rate(comparisons, 0.95)
    assert estimate is not None
    assert estimate["win_rate"] == asdict(win_rate(comparisons.people[:49]))
    assert (estimate["known"], estimate["decides"], estimate["by"]) == (49, False, "people alone")
    few = np.where(np.arange(800) < 9, comparisons.people, np.nan)
    assert people_rate(replace(comparisons, people=few), 0.95) is None


def test_people_overrule_the_judge() -> None:
    """The judge always prefers the policy; people, on 200 of 800 prompts, the other model."""
    people = np.where(np.arange(800) < 200, np.arange(800) % 4 == 0, np.nan)
    figures = results(table(np.ones(800), people=people))
    assert figures["people"]["win_rate"]["high"] < 0.5
    assert figures["effect"] == "rejected, perhaps for length"


def test_every_comparison_without_a_verdict_has_one_reason() -> None:
    candidates = iter(pool(["a", "b"], ["c", "d"], ["e", "e"], ["f", "g"]).candidates)
    sides = [*zip(candidates, candidates, strict=True)]
    errors = {each.candidate_id: "too long" for each in (*sides[0], *sides[2])}
    figures = Comparison(sides, {}, {c.candidate_id: 1.0 for c in sides[3]}, errors, {}).figures
    assert (figures["judged"], figures["ties"]) == (2, 2)
    assert figures["missing"] == {"too long": 1, "no reason given": 1}


@pytest.mark.parametrize(("labeler", "first"), [("human", 0.5), ("ensemble", 0.5), ("mine", 1.0)])
def test_who_sees_an_order_of_its_own_has_no_first_answer(labeler: str, first: float) -> None:
    policy, other = pool(["a", "b"]).candidates
    sides = {"a": policy.candidate_id, "b": other.candidate_id}
    judgement = Judgement("p0", labeler, preference="a", **sides)
    comparison = Comparison([(policy, other)], {"p0": judgement}, {}, {}, {})
    assert comparison.shown_first(policy) == first


def test_a_detectable_difference_shrinks_with_the_prompts() -> None:
    points = [round(100 * detectable(prompts)) for prompts in (0, 1, 100, 400, 800)]
    assert points == [50, 50, 12, 6, 4]
