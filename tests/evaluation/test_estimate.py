"""Intervals have their nominal coverage, over other prompts of these tasks or over other tasks like these."""

import numpy as np
import pytest

from stages.evaluation.distributions import binomial_at_most, student_quantile
from stages.evaluation.estimate import Means, prompts_needed
from stages.evaluation.retention import p_not_worse
from tests.evaluation.simulated import CASES, Case

TABLES = 200
FEW = 4 * (0.05 * 0.95 / TABLES) ** 0.5  # four standard errors of a 95% coverage


@pytest.mark.parametrize(
    ("name", "helped"),
    [
        ("28 × 28, no effect", 0.0),
        ("28 × 28, +3 points, family sd 2", 0.55),
        ("28 families of 5 to 80, +3 points, sd 3", 0.5),
        ("40 × 5 at 5%, no effect", 0.0),
        ("5 × 60, +3 points, sd 3", 0.0),
    ],
)
def test_an_interval_holds_the_truth_in_95_of_100_tables(name: str, helped: float) -> None:
    """The earlier two-level bootstrap covered 98 to 100 of 100, and found +3 points in half as many tables."""
    [case] = [case for case in CASES if case.name == name]
    families = case.families()
    rng = np.random.default_rng(3)
    covering = np.zeros(2)
    detected = np.zeros(2)
    for _ in range(TABLES):
        outcomes, truths = case.table(rng)
        for i, question in enumerate(("these", "like")):
            interval = Means(outcomes, families, drawn=question == "like").difference(1, 0)
            covering[i] += interval.low <= truths[question] <= interval.high
            detected[i] += interval.low > 0
    assert covering / TABLES == pytest.approx(0.95, abs=FEW)
    assert (detected / TABLES >= helped).all()
    if not case.gain:
        assert (detected / TABLES <= 0.025 + FEW).all()


def test_families_that_differ_widen_what_is_said_of_others_alone() -> None:
    case = Case("", (28,) * 28, 0.05, 0.10)
    rng = np.random.default_rng(0)
    widths = {True: 0.0, False: 0.0}
    for _ in range(20):
        outcomes, _ = case.table(rng)
        for drawn in widths:
            interval = Means(outcomes, case.families(), drawn).difference(1, 0)
            widths[drawn] += interval.high - interval.low
    assert widths[True] > 1.5 * widths[False]


def test_models_that_answer_alike_differ_by_as_little_as_so_many_prompts_tell() -> None:
    column = np.random.default_rng(0).integers(0, 2, 200)
    families = [str(i % 7) for i in range(200)]
    for drawn in (False, True):
        same = Means(np.stack([column, column], 1).astype(float), families, drawn).difference(1, 0)
        assert same.mean == 0
        assert 0 < same.high == -same.low < 0.04, "neither [0, 0] nor half a family wide"


def test_tasks_that_all_fail_alike_are_so_many_draws_of_other_tasks() -> None:
    """Not as many as they have prompts: twelve tasks at 0% leave room for one in six."""
    families = [str(i % 12) for i in range(240)]
    outcomes = np.zeros((240, 1))
    of_tasks = Means(outcomes, families, drawn=True).share(0)
    assert of_tasks == Means(outcomes[:12], families[:12], drawn=True).share(0)
    assert 0.15 < of_tasks.high - of_tasks.low < 0.3
    assert Means(outcomes, families).share(0).high < 0.03


def test_equal_families_drawn_have_the_t_interval_of_their_means() -> None:
    values = np.random.default_rng(5).normal(0, 1, (60, 2))
    means = (values[:, 1] - values[:, 0]).reshape(12, 5).mean(1)
    families = [str(i // 5) for i in range(60)]
    difference = Means(values, families, drawn=True, shares=False).difference(1, 0)
    half = student_quantile(0.975, 11) * means.std(ddof=1) / 12**0.5
    assert difference.low == pytest.approx(means.mean() - half)
    assert difference.high == pytest.approx(means.mean() + half)


@pytest.mark.parametrize("prompts", [32, 200])
def test_that_nothing_got_worse_among_few_proves_little(prompts: int) -> None:
    """Among 64 answers of a policy that loops in 2% of all answers, none loops one time in four."""
    none = np.ones(prompts)
    assert p_not_worse(none, none, 0.02) >= 0.98**prompts - 1e-12
    assert p_not_worse(none, none, 0.02, lowest=-1.0) >= 0.98**prompts - 1e-12
    assert p_not_worse(none, none, 0.02, lowest=0.0) == 0, "what is at its lowest cannot fall"
    assert p_not_worse(np.ones(500), np.ones(500), 0.02) < 0.01


@pytest.mark.parametrize("base", [0.0, 0.05])
def test_a_claim_that_is_false_by_its_margin_holds_in_one_of_twenty(base: float) -> None:
    rng = np.random.default_rng(6)
    holding = 0
    for _ in range(TABLES):
        before = (rng.random(200) >= base).astype(float)
        policy = (rng.random(200) >= base + 0.02).astype(float)
        holding += p_not_worse(policy, before, 0.02) <= 0.05
    assert holding / TABLES <= 0.05 + FEW


def test_a_claim_holds_where_enough_prompts_show_that_nothing_changed() -> None:
    """With 15 of 100 answers that differ, half of them each way, so many prompts show it nine times in ten."""
    assert prompts_needed(0.15, 0.02, 0.05) == 3212
    assert prompts_needed(0.15, 0.05, 0.05) == 514
    rng = np.random.default_rng(8)
    holding = 0
    for _ in range(100):
        luck = rng.random(514)
        policy = luck >= 0.075
        before = (luck < 0.075) | (luck >= 0.15)
        holding += p_not_worse(policy.astype(float), before.astype(float), 0.05) <= 0.05
    assert holding / 100 == pytest.approx(0.9, abs=0.12)


@pytest.mark.parametrize("pairs", [10, 88, 400])
def test_preferences_are_learnt_where_the_exact_test_says_so(pairs: int) -> None:
    prompts = [*map(str, range(pairs))]
    for hits in range(pairs // 2, pairs + 1):
        outcomes = (np.arange(pairs)[:, None] < hits).astype(float)
        is_learnt = Means(outcomes, prompts, True).share(0).low > 0.5
        assert is_learnt == (1 - binomial_at_most(hits - 1, pairs, 0.5) <= 0.025)
