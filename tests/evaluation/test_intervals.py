"""Intervals have their nominal coverage, over other prompts of these tasks or over other tasks like these."""

import math

import numpy as np
import pytest

from stages.evaluation.intervals import (
    Means,
    binomial,
    paired,
    prompts_needed,
    student_exceeding,
    student_quantile,
)
from stages.evaluation.retention import p_of_means, p_of_shares
from tests.bench.intervals import CASES, Case

TABLES = 200
FEW = 4 * (0.05 * 0.95 / TABLES) ** 0.5  # four standard errors of a 95% coverage


@pytest.mark.parametrize(
    ("name", "helped"),
    [
        ("28 × 28, no effect", 0.0),
        ("28 × 28, +3 points, family sd 2", 0.55),
        ("30 × 30 at 22%, +3 points, family sd 3", 0.55),
        ("28 families of 5 to 80, +3 points, sd 3", 0.5),
        ("12 × 20, no effect", 0.0),
        ("40 × 5 at 5%, no effect", 0.0),
        ("5 × 60, +3 points, sd 3", 0.0),
    ],
)
def test_an_interval_holds_the_truth_in_95_of_100_tables(name: str, helped: float) -> None:
    """The earlier two-level bootstrap covered 98 to 100 of 100, and found +3 points in half as many tables."""
    [case] = [case for case in CASES if case.name == name]
    families, rng = case.families(), np.random.default_rng(3)
    covering, detected = np.zeros(2), np.zeros(2)
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
    tables, rng = [], np.random.default_rng(0)
    for _ in range(20):
        tables.append(case.table(rng)[0])

    def width(i):
        return i.high - i.low

    def of_all(drawn):
        return np.mean([width(Means(t, case.families(), drawn).difference(1, 0)) for t in tables])

    assert of_all(True) > 1.5 * of_all(False)


def test_models_that_answer_alike_differ_by_as_little_as_so_many_prompts_tell() -> None:
    column = np.random.default_rng(0).integers(0, 2, 200)
    families = [str(i % 7) for i in range(200)]
    for drawn in (False, True):
        same = Means(np.stack([column, column], 1).astype(float), families, drawn).difference(1, 0)
        assert same.mean == 0
        assert 0 < same.high == -same.low < 0.04, "neither [0, 0] nor half a family wide"


def test_a_family_of_one_prompt_has_a_spread_too() -> None:
    """Prompts of one task each are a simple random sample; a single such prompt joins the smallest family."""
    outcomes = np.random.default_rng(0).integers(0, 2, (40, 2)).astype(float)
    alone = Means(outcomes, [str(i) for i in range(40)]).difference(1, 0)
    assert alone == Means(outcomes, [""] * 40).difference(1, 0)
    families = ["many"] * 30 + ["few"] * 9 + ["one"]
    joined = ["many"] * 30 + ["few"] * 10
    assert Means(outcomes, families).difference(1, 0) == Means(outcomes, joined).difference(1, 0)


def test_tasks_that_all_fail_or_pass_alike_are_so_many_draws_of_other_tasks() -> None:
    """Not as many as they have prompts: twelve tasks at 0% leave room for one in six."""
    families = [str(i % 12) for i in range(240)]
    for outcome in (0.0, 1.0):
        many, few = (
            Means(np.full((n, 1), outcome), families[:n], drawn=True).share(0) for n in (240, 12)
        )
        assert many == few
        assert 0.15 < many.high - many.low < 0.3
        of_prompts = Means(np.full((240, 1), outcome), families).share(0)
        assert of_prompts.high - of_prompts.low < 0.03


@pytest.mark.parametrize("prompts", [3, 28])
def test_a_model_that_passes_all_prompts_of_one_that_passes_none_may_fail_others(
    prompts: int,
) -> None:
    means = Means(np.array([[0.0, 1.0]] * prompts), [""] * prompts)
    assert means.difference(1, 0).low == means.share(1).low < 0.95
    assert means.difference(0, 1).high == -means.share(1).low


def test_a_table_of_one_prompt_tells_nothing() -> None:
    difference = Means(np.array([[0.0, 1.0]]), ["a"]).difference(1, 0)
    assert (difference.mean, difference.low, difference.high) == (1, -1, 1)
    assert paired([0.0], [1.0]).low == -math.inf


def test_a_difference_of_one_family_drawn_is_of_its_prompts() -> None:
    outcomes = np.random.default_rng(0).integers(0, 2, (40, 2)).astype(float)
    assert Means(outcomes, ["a"] * 40, drawn=True).difference(1, 0) == Means(
        outcomes, ["a"] * 40
    ).difference(1, 0)


def test_measures_that_are_no_shares_have_plain_t_intervals() -> None:
    """Compared with the formula of a stratified mean, computed by hand."""
    rng, sizes = np.random.default_rng(4), (6, 10, 14)
    families = [str(f) for f, size in enumerate(sizes) for _ in range(size)]
    values = rng.normal(0, 3, (30, 2)) + 5
    change, of = values[:, 1] - values[:, 0], np.array(families)
    parts = [
        (size / 30) ** 2 * change[of == str(f)].var(ddof=1) / size for f, size in enumerate(sizes)
    ]
    freedom = sum(parts) ** 2 / sum(
        part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True)
    )
    difference = Means(values, families, shares=False).difference(1, 0)
    assert difference.mean == pytest.approx(change.mean())
    assert difference.high - difference.mean == pytest.approx(
        student_quantile(0.975, freedom) * sum(parts) ** 0.5
    )


def test_equal_families_drawn_have_the_t_interval_of_their_means() -> None:
    values = np.random.default_rng(5).normal(0, 1, (60, 2))
    means = (values[:, 1] - values[:, 0]).reshape(12, 5).mean(1)
    difference = Means(
        values, [str(i // 5) for i in range(60)], drawn=True, shares=False
    ).difference(1, 0)
    half = student_quantile(0.975, 11) * means.std(ddof=1) / 12**0.5
    assert (difference.low, difference.high) == pytest.approx(
        (means.mean() - half, means.mean() + half)
    )


def test_the_quantiles_of_t_are_those_of_the_tables() -> None:
    for freedom, expected in (
        (1, 12.706),
        (2, 4.303),
        (5, 2.571),
        (13, 2.160),
        (40, 2.021),
        (1e6, 1.960),
    ):
        assert student_quantile(0.975, freedom) == pytest.approx(expected, rel=3e-4)
        assert student_exceeding(expected, freedom) == pytest.approx(0.025, rel=3e-3)


def test_that_nothing_got_worse_among_few_proves_little() -> None:
    """Among 64 answers of a policy that loops in 2% of all answers, none loops one time in four."""
    for prompts in (32, 64, 200):
        none = np.ones(prompts)
        assert p_of_shares(none, none, 0.02) >= 0.98**prompts - 1e-12
        assert p_of_means(none, none, 0.02, lowest=-1.0) >= 0.98**prompts - 1e-12
        assert p_of_means(none, none, 0.02, lowest=0.0) == 0, "what is at its lowest cannot fall"
    assert p_of_shares(np.ones(500), np.ones(500), 0.02) < 0.01
    hardly = np.zeros(400)
    hardly[0] = 0.3
    assert 0 <= p_of_means(hardly, np.zeros(400), 0.05, lowest=0.0) < 1e-6, (
        "a margin beyond all that can be lost"
    )


@pytest.mark.parametrize(("prompts", "base"), [(64, 0.0), (64, 0.05), (200, 0.0), (200, 0.05)])
def test_a_claim_that_is_false_by_its_margin_holds_in_one_of_twenty(
    prompts: int, base: float
) -> None:
    rng, holding = np.random.default_rng(6), 0
    for _ in range(TABLES):
        before, policy = (
            (rng.random(prompts) >= share).astype(float) for share in (base, base + 0.02)
        )
        holding += p_of_shares(policy, before, 0.02) <= 0.05
    assert holding / TABLES <= 0.05 + FEW


def test_a_claim_holds_where_enough_prompts_show_that_nothing_changed() -> None:
    """With 15 of 100 answers that differ, half of them each way: 3,212 prompts for 2 points, 514 for 5."""
    assert prompts_needed(0.15, 0.02, 0.05) == 3212
    assert (prompts_needed(0.15, 0.05, 0.05), prompts_needed(0.15, 0.05, 0.025)) == (514, 631)
    assert prompts_needed(0.0, 0.02, 0.05, fall=1.0) == prompts_needed(0.02 * 0.98, 0.02, 0.05)
    assert prompts_needed(1.0, 0.0, 0.05) is None
    rng, holding = np.random.default_rng(8), 0
    for _ in range(100):
        luck = rng.random(514)
        lost, gained = luck < 0.075, (luck >= 0.075) & (luck < 0.15)
        holding += p_of_shares((~lost).astype(float), (~gained).astype(float), 0.05) <= 0.05
    assert holding / 100 == pytest.approx(0.9, abs=0.12)


@pytest.mark.parametrize("pairs", [10, 20, 88, 100, 200, 400])
def test_preferences_are_learnt_where_the_exact_test_says_so(pairs: int) -> None:
    def low(hits: int) -> float:
        outcomes = np.arange(pairs)[:, None] < hits
        return Means(outcomes.astype(float), [*map(str, range(pairs))], True).tested_share(0).low

    counts = range(pairs // 2, pairs + 1)
    exact = next(hits for hits in counts if 1 - binomial(hits - 1, pairs, 0.5) <= 0.025)
    assert next(hits for hits in counts if low(hits) > 0.5) == exact


def test_pairs_of_one_prompt_are_not_as_many_draws() -> None:
    """Of 1,000 tables of 25 prompts with four alike pairs each, 2.5% may show what is not there. Drawn, that is 40 at
    most in 999 of 1,000 draws."""
    rng, prompts = np.random.default_rng(0), [str(i // 4) for i in range(100)]
    chances = np.repeat(rng.beta(2, 2, (1_000, 25)), 4, axis=1)
    tables = (rng.random(chances.shape) < chances).astype(float)
    lows = [Means(table[:, None], prompts, True).tested_share(0).low for table in tables]
    assert np.mean(np.array(lows) > 0.5) <= 0.040
