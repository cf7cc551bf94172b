"""Win rates of a judged comparison: no verdict due to length or chance, and intervals with their nominal coverage."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.evaluation.judged import Comparison
from stages.evaluation.results import WinRates
from stages.evaluation.win_rates import (
    Comparisons,
    comparison_results,
    people_rate,
    win_rate,
)
from stages.store.typed_json import encode
from tests.rows import pool

Array = NDArray[np.float64]


CERTAIN = np.inf  # log-odds of a judge that never errs


@dataclass(frozen=True)
class Judge:
    """A judge that prefers the longer answer with these log-odds at a difference of one sd, the answer that it sees
    first with those, and the policy's with `gain`; a share of its words are ties, and a share is missing."""

    name: str
    longer: float = 0.0
    first: float = 0.0
    gain: float = 0.0
    ties: float = 0.3
    missing: float = 0.0

    def table(self, rng: np.random.Generator, prompts: int, drift: float) -> Comparisons:
        """Differences of lengths are normal around `drift`, in tokens of which 60 are one sd."""
        of_length = rng.normal(drift, 1, prompts)
        shown_first = rng.random(prompts) < 0.5
        odds = self.gain + leaning(
            self.longer, np.sign(of_length) * np.minimum(np.abs(of_length), 1.5)
        )
        odds = odds + leaning(self.first, np.where(shown_first, 1.0, -1.0))
        won = (rng.random(prompts) < 1 / (1 + np.exp(-odds))).astype(float)
        won[rng.random(prompts) < self.ties] = 0.5
        won[rng.random(prompts) < self.missing] = np.nan
        tokens = away_from_zero(60 * of_length)
        nobody = np.full(prompts, np.nan)
        return Comparisons(won, tokens, nobody, shown_first, np.full(prompts, False), won)


def leaning(odds: float, toward: Array) -> Array:
    return 50 * np.sign(toward) if odds == CERTAIN else odds * toward


def away_from_zero(tokens: Array) -> NDArray[np.int64]:
    return (np.sign(tokens) * np.ceil(np.abs(tokens))).astype(int)


NULLS = (
    Judge("no lean"),
    Judge("leans to longer", longer=1.0),
    Judge("longer always wins", longer=CERTAIN, ties=0.0),
    Judge("first always wins", first=CERTAIN, ties=0.0),
    Judge("noise", ties=0.85, missing=0.1),
)


BETTER = Judge("no lean", gain=float(np.log(0.6 / 0.4)))


def verdicts(judge: Judge, tables: int, prompts: int, drift: float) -> Counter[str]:
    rng = np.random.default_rng(0)
    return Counter(results(judge.table(rng, prompts, drift)).effect for _ in range(tables))


def claims(effects: Counter[str]) -> float:
    """The share of tables that call the policy better or worse."""
    return (effects["better"] + effects["worse"]) / effects.total()


def audited(
    rng: np.random.Generator,
    truth: float,
    right: tuple[float, float],
    words: int,
) -> Comparisons:
    """Comparisons of which people know the first `words`. `right`: how often the judge is where the policy's answer is
    better, and where it is not."""
    prompts = 800
    people = (rng.random(prompts) < truth).astype(float)
    won = np.where(
        people == 1, rng.random(prompts) < right[0], rng.random(prompts) >= right[1]
    ).astype(float)
    nothing = np.zeros(prompts)
    return Comparisons(
        won,
        nothing,
        np.where(np.arange(prompts) < words, people, np.nan),
        nothing,
        nothing > 0,
        won,
    )


AUDITS = ((0.5, (0.8, 0.8), 50), (0.5, (0.65, 0.65), 100), (0.6, (0.9, 0.6), 300))


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


def results(c: Comparisons) -> WinRates:
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
    assert disjoint.matched is None
    assert disjoint.unmatched
    for shorter, is_matched in ((19, False), (20, True)):
        longer_by = np.repeat([9, -9], [100 - shorter, shorter])
        assert bool(results(table(np.ones(100), longer_by)).matched) == is_matched


def test_identical_models_have_a_rate_of_exactly_one_half_and_a_narrow_interval() -> None:
    figures = results(table(np.full(300, 0.5), alike=np.full(300, True)))
    rate = figures.win_rate
    assert rate.mean == figures.matched.win_rate.mean == 0.5
    # A win on one prompt in 300 could have been missed, a win on one in 30 could not.
    assert 1 / 600 < rate.high - 0.5 < 1 / 60
    assert figures.detectable >= rate.high - 0.5
    assert figures.effect == "no measurable difference"


def test_a_preference_that_goes_with_length_is_named_as_such() -> None:
    longer = np.repeat([7, -7], [280, 120])
    assert results(table(longer > 0, longer)).effect == "preferred, perhaps for length"
    assert results(table(longer < 0, longer)).effect == "rejected, perhaps for length"
    assert results(table(longer > 0, longer)).matched.win_rate.mean == 0.5


def test_missing_judgements_are_left_out_and_few_give_no_verdict() -> None:
    figures = results(table(np.repeat([1.0, np.nan], [19, 81])))
    assert figures.effect == "too few to say"
    assert figures.win_rate.mean == 1
    assert results(table(np.ones(20))).effect == "better"
    json.dumps(encode(results(table(np.full(5, np.nan)))), allow_nan=False)


@pytest.mark.parametrize(("truth", "right", "words"), AUDITS)
def test_the_interval_by_people_and_judge_holds_the_truth(
    truth: float, right: tuple[float, float], words: int
) -> None:
    """Allow four standard errors around 95%."""
    rng = np.random.default_rng(0)
    tables = 300
    inside = 0
    widths = 0.0
    widths_alone = 0.0
    for _ in range(tables):
        comparisons = audited(rng, truth, right, words)
        estimate = people_rate(comparisons, 0.95)
        assert estimate
        together = estimate.win_rate
        alone = win_rate(comparisons.people[:words])
        inside += together.low <= truth <= together.high
        widths += together.high - together.low
        widths_alone += alone.high - alone.low
    assert inside / tables == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / tables) ** 0.5)
    assert widths <= 1.02 * widths_alone


def test_few_words_of_people_stand_alone_and_fewer_say_nothing() -> None:
    comparisons = audited(np.random.default_rng(0), 0.6, (0.8, 0.8), 49)
    estimate = people_rate(comparisons, 0.95)
    assert estimate is not None
    assert estimate.win_rate == win_rate(comparisons.people[:49])
    assert (estimate.known, estimate.decides, estimate.by) == (49, False, "people alone")
    few = np.where(np.arange(800) < 9, comparisons.people, np.nan)
    assert people_rate(replace(comparisons, people=few), 0.95) is None


def test_people_overrule_the_judge() -> None:
    """The judge always prefers the policy; people, on 200 of 800 prompts, the other model."""
    people = np.where(np.arange(800) < 200, np.arange(800) % 4 == 0, np.nan)
    figures = results(table(np.ones(800), people=people))
    assert figures.people.win_rate.high < 0.5
    assert figures.effect == "rejected, perhaps for length"


def test_every_comparison_without_a_verdict_has_one_reason() -> None:
    candidates = iter(pool(["a", "b"], ["c", "d"], ["e", "e"], ["f", "g"]).candidates)
    sides = [*zip(candidates, candidates, strict=True)]
    errors = {each.candidate_id: "too long" for each in (*sides[0], *sides[2])}
    figures = Comparison(sides, {}, {c.candidate_id: 1.0 for c in sides[3]}, errors, {}).counts
    assert (figures.judged, figures.ties) == (2, 2)
    assert figures.missing == {"too long": 1, "no reason given": 1}
