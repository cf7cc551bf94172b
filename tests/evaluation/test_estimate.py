"""Intervals have their nominal coverage, over other prompts of these tasks or over other tasks like these."""

import itertools

import numpy as np
import pytest

from stages.evaluation.distributions import binomial_at_most, student_quantile
from stages.evaluation.estimate import Means, correction, over_seeds, prompts_needed, share
from stages.evaluation.retention import p_not_worse
from stages.evaluation.win_rates import win_rate
from tests.bench import coverage
from tests.evaluation.simulated import CASES, Case

TABLES = 200
CHANGING = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)  # the share of prompts that change
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


def test_an_interval_over_seeds_holds_the_mean_of_all_seeds_in_95_of_100_recipes() -> None:
    rng = np.random.default_rng(5)
    recipes = 4 * TABLES
    for n_seeds in (2, 3, 5):
        gains = rng.normal(0.03, 0.02, (recipes, n_seeds))
        intervals = [over_seeds(of_recipe.tolist(), 0.001) for of_recipe in gains]
        covering = np.mean([interval.low <= 0.03 <= interval.high for interval in intervals])
        assert covering == pytest.approx(0.95, abs=FEW / 2)


def test_equal_seeds_may_still_differ_by_the_rounding_of_a_count_of_prompts() -> None:
    equal = over_seeds([0.05, 0.05, 0.05], step=1 / 20)
    assert equal.low < 0.05 < equal.high
    finer = over_seeds([0.05, 0.05, 0.05], step=1 / 800)
    assert finer.high - finer.low < (equal.high - equal.low) / 30
    share = over_seeds([0.9, 1.0], step=0.01, lowest=0.0)
    assert share.low < 0.5, "two seeds say next to nothing"
    assert share.high == 1.0


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


def test_one_share_has_one_interval() -> None:
    """14 of 20 had four: of a label page, a pass rate, held-out pairs and a win rate."""
    won = (np.arange(20) < 14).astype(float)
    prompts = [*map(str, range(20))]
    alone = share(won, prompts).interval()
    assert (alone.low, alone.high) == pytest.approx((0.457, 0.881), abs=5e-4), "Clopper, Pearson"
    for other in (
        Means(won[:, None], [""] * 20).share(0),
        Means(won[:, None], prompts, drawn=True).share(0),
        win_rate(won),
    ):
        assert (other.low, other.high) == pytest.approx((alone.low, alone.high))


def test_families_of_two_prompts_are_one_stratum() -> None:
    """Satterthwaite's degrees of freedom made this interval a quarter wider, and strata of two called equal models
    different in up to 7% of tables: three gains, two of them in one family, sufficed."""
    changes = np.zeros(40)
    changes[[0, 5, 11, 16, 23, 30]] = (1, 1, 1, 1, 1, -1)
    outcomes = np.stack([changes < 0, changes > 0], 1).astype(float)
    of_two = Means(outcomes, [str(i // 2) for i in range(40)]).difference(1, 0)
    assert of_two == Means(outcomes, [""] * 40).difference(1, 0)


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("families", [5, 6])
def test_families_of_two_prompts_make_equal_models_differ_in_2_5_of_100_tables(
    families: int, drawn: bool
) -> None:
    """Exact: all tables of families whose two prompts are gained, lost or unchanged. Strata of two had 3.6%."""
    names = [str(i // 2) for i in range(2 * families)]
    kinds = [*itertools.combinations_with_replacement((-1, 0, 1), 2)]
    tables = [*itertools.combinations_with_replacement(kinds, families)]
    above = np.zeros(len(tables), bool)
    numbers = np.zeros((len(tables), len(kinds)), int)
    for i, table in enumerate(tables):
        changes = np.array(table).ravel()
        outcomes = np.stack([changes < 0, changes > 0], 1).astype(float)
        above[i] = Means(outcomes, names, drawn).difference(1, 0).low > 0
        numbers[i] = [table.count(kind) for kind in kinds]
    for changing in CHANGING:
        chances = {-1: changing / 2, 0: 1 - changing, 1: changing / 2}
        of_kinds = [chances[a] * chances[b] * (1 + (a != b)) for a, b in kinds]
        assert coverage.multinomial(numbers.T, of_kinds)[above].sum() <= 0.025


@pytest.mark.parametrize("changing", CHANGING)
@pytest.mark.parametrize("prompts", [10, 20, 40])
def test_equal_models_differ_in_2_5_of_100_tables_a_side(prompts: int, changing: float) -> None:
    """Exact: all tables. Tango's interval alone had up to 2.7%, a paired t interval up to 2.9%."""
    rates = coverage.exact(prompts, changing, 0.5)
    assert rates.above == pytest.approx(rates.below)
    assert rates.above <= 0.025


def test_four_changes_to_one_side_are_luck() -> None:
    for prompts in (20, 120, 800):
        assert coverage.interval_of(prompts, 4, 0).low <= 0
        assert coverage.interval_of(prompts, 6, 0).low > 0


@pytest.mark.parametrize(("changing", "gaining"), [(0.1, 0.5), (0.3, 0.7), (0.5, 0.9), (0.3, 1.0)])
@pytest.mark.parametrize("prompts", [20, 40])
def test_of_few_prompts_the_interval_holds_the_truth(
    prompts: int, changing: float, gaining: float
) -> None:
    """Exact: all tables, with their probabilities. `python -m tests.bench.coverage` has the other sizes."""
    rates = coverage.exact(prompts, changing, gaining)
    assert rates.covered >= 0.935
    if prompts * changing >= 10:
        assert rates.covered <= 0.975


@pytest.mark.parametrize("truth", [0.02, 0.05, 0.5, 0.9])
def test_a_share_of_independent_prompts_never_covers_less_than_it_says(truth: float) -> None:
    assert coverage.exact_share(40, truth) >= 0.95


def test_a_share_of_two_prompts_stays_between_0_and_1() -> None:
    """Half of one prompt's answers and none of the other's are worth a quarter of a row."""
    of_two = share(np.array([1.0, 0.0, 0.0, 0.0]), "aabb").interval()
    assert 0.0 <= of_two.low < 0.25 < of_two.high <= 1.0


def test_judgements_of_one_prompt_are_one_draw() -> None:
    """A judge who is right on 78% of all: over judgements, 78% of 2,000 intervals held that. Four standard errors."""
    rates = coverage.judged(30, 6, 0.78, TABLES, np.random.default_rng(0))
    assert rates.covered >= 0.95 - FEW


def test_not_worse_agrees_with_the_interval() -> None:
    """The p-value is half of 1 - confidence at the margin where the interval ends: for families, and where all prompts
    change and the interval is exact."""
    outcomes, _ = CASES[1].table(np.random.default_rng(2))
    families = CASES[1].families()
    gained = (np.arange(40) < 27).astype(float)
    all_change = np.stack([1 - gained, gained], 1)
    tables = [
        Means(outcomes, families),
        Means(outcomes, families, drawn=True),
        Means(all_change, [""] * 40),
    ]
    for means in tables:
        low = means.difference(1, 0).low
        assert means.not_worse(1, 0, -low, lowest=None) == pytest.approx(0.025, rel=1e-3)
        assert means.differs(1, 0) <= 0.05 if low > 0 else means.differs(1, 0) > 0.05


def test_holms_levels_rise_while_claims_are_made() -> None:
    assert correction([0.02, 0.001, 0.9], 0.05) == pytest.approx([0.025, 0.05 / 3, 0.05])
    assert correction([0.02, 0.9, 0.03], 0.05) == pytest.approx([0.05 / 3] * 3)
    assert correction([], 0.05) == []
