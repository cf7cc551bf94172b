"""Which of several models is best: what is said of it, and how often chance alone is taken for more."""

import numpy as np
import pytest

from stages.evaluation.best_model import Contender, compared, conclusion
from stages.evaluation.intervals import Means
from tests.bench.intervals import Sweep

PROMPTS, TASKS = 300, 30
FAMILIES = [str(i % TASKS) for i in range(PROMPTS)]
DOES = "passes {} of 300 validation prompts"


def answered(rng: np.random.Generator, *rates: float, alike: float = 0.7) -> np.ndarray:
    """Whether models of these pass rates passed each prompt; on most prompts they have the same luck."""
    luck, own = rng.random((PROMPTS, 1)), rng.random((PROMPTS, len(rates)))
    return (np.where(rng.random(own.shape) < alike, luck, own) < np.array(rates)).astype(float)


def said(outcomes: np.ndarray, *names: str) -> str:
    """Of SFT and settings, the highest rate first, as a comparison lists them."""
    order = sorted(range(len(names)), key=lambda i: -outcomes[:, i].mean())
    models = [Contender(names[i], float(outcomes[:, i].mean()), names[i] == "SFT") for i in order]
    return conclusion(models, DOES, compared(outcomes[:, order], FAMILIES))


def test_one_setting_is_judged_as_its_evaluation_judges_it() -> None:
    outcomes = answered(np.random.default_rng(0), 0.4, 0.5)
    own, among = Means(outcomes, FAMILIES).difference(1, 0), compared(outcomes, FAMILIES)
    assert among.alone(0, 1) == among.between(0, 1) == own
    three = compared(answered(np.random.default_rng(0), 0.4, 0.5, 0.45), FAMILIES)
    alone, corrected = three.alone(0, 1), three.between(0, 1)
    assert corrected.low < alone.low < alone.high < corrected.high


def test_the_best_of_many_that_are_alike_is_no_more_than_chance() -> None:
    """Prompts without families, for which an interval is as wide as it says."""
    rng, alone, corrected = np.random.default_rng(1), 0, 0
    for _ in range(60):
        outcomes = answered(rng, *[0.4] * 13, alike=0.0)
        best = 1 + int(outcomes[:, 1:].mean(0).argmax())
        alone += compared(outcomes[:, [0, best]], [""] * PROMPTS).better(1, 0)
        corrected += compared(outcomes, [""] * PROMPTS).better(best, 0)
    assert corrected <= 5, "at most 2.5% in the long run"
    assert alone > 4 + corrected, "what its own interval says of the best is no use"


def test_models_that_answer_alike_cost_nothing() -> None:
    outcomes = answered(np.random.default_rng(2), 0.4, 0.5)
    copies = outcomes[:, [0, *[1] * 12]]
    once, often = compared(outcomes, FAMILIES), compared(copies, FAMILIES)
    width = lambda comparison: comparison.between(0, 1).high - comparison.between(0, 1).low
    assert width(often) == pytest.approx(width(once), rel=0.05)
    same = often.between(1, 2)
    assert same.mean == 0 and same.high < 4 / PROMPTS, "as far as so many prompts tell"


def test_a_better_setting_among_seven_is_found_more_often_than_not() -> None:
    """+8 points, of 7 settings on 28 tasks of 11 prompts: the comparison that drew prompts twice found 22 to 34%."""
    sweep = Sweep("", 28, 11, (0.08, *(0.0,) * 6))
    rng, families = np.random.default_rng(7), [str(i) for i in range(28) for _ in range(11)]
    found = [compared(sweep.table(rng), families).better(1, 0) for _ in range(100)]
    assert np.mean(found) >= 0.7, "88% of 1,000 tables"


def test_a_setting_that_is_better_is_found_among_many() -> None:
    told = said(answered(np.random.default_rng(3), 0.4, 0.42, 0.65, 0.38, 0.41), "SFT", "a", "b", "c", "d")
    assert told.startswith("Of 4 settings, b is the best")
    assert "more than chance among so many; every other " in told


def test_two_good_settings_may_be_as_good_as_each_other() -> None:
    told = said(answered(np.random.default_rng(4), 0.4, 0.65, 0.4, 0.64), "SFT", "a", "b", "c")
    assert "; 1 of the other 2 " in told


def test_where_sft_is_above_all_settings_none_is_called_better() -> None:
    told = said(answered(np.random.default_rng(5), 0.6, 0.3, 0.2), "SFT", "a", "b")
    assert told.startswith("No setting is better than SFT")
    assert "the best of 2, a, " in told
    assert told.endswith("more than chance among so many.")
    level = said(np.tile(answered(np.random.default_rng(6), 0.5), 2), "SFT", "a")
    assert level.startswith("No setting is better than SFT")
    assert level.count("+0.0 points (−1.3 to +1.3)") == 1


def test_without_outcomes_nothing_is_said_of_chance() -> None:
    models = [Contender("a", 0.5), Contender("b", 0.4), Contender("SFT", 0.3, start=True)]
    told = "Of 2 settings, a is the best: it passes 50.0% of 300 validation prompts, SFT 30.0%"
    assert conclusion(models, DOES, None) == f"{told}; whether that is chance is not known."
