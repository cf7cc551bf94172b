"""Agreement against published examples, and the corrected rate against judges whose errors are known."""

from dataclasses import astuple

import numpy as np
import pytest

from stages.evaluation.agreement import (
    alpha,
    coincidences,
    corrected_rate,
    discriminates,
    kappa,
    resample,
    share,
)
from tests.helpers import confusion

RATE, SENSITIVITY, SPECIFICITY = 0.6, 0.85, 0.7


def test_alpha_and_kappa_are_those_of_the_textbooks() -> None:
    """Krippendorff's two coders of ten articles (2011, p. 2): α = 0.095. Cohen's κ by hand: (0.6 − 0.56) / 0.44."""
    counts = confusion("0100000010", "1110010000")
    assert float(alpha(counts)) == pytest.approx(0.095, abs=5e-4)
    assert float(kappa(counts)) == pytest.approx(0.04 / 0.44)
    assert float(kappa(confusion("abca", "abca"))) == float(alpha(confusion("abca", "abca"))) == 1
    assert np.isnan(kappa(confusion("aaa", "aaa"))), "κ is undefined with a single label"


def test_alpha_of_any_number_of_labellers_is_that_of_the_textbook() -> None:
    """Krippendorff's four observers of twelve units with missing labels (2011, p. 5): α = 0.743."""
    observers = "123321412...", "1233224125.3", ".3332342251.", "12332441251."
    units = [
        [int(label) - 1 for label in unit if label != "."] for unit in zip(*observers, strict=True)
    ]
    several = [unit for unit in units if len(unit) > 1]
    assert float(alpha(coincidences(several, 5))) == pytest.approx(0.743, abs=5e-4)
    two = [[i, j] for i, j in zip([0, 1, 0, 2], [0, 1, 1, 2], strict=True)]
    assert float(alpha(coincidences(two, 3))) == pytest.approx(
        float(alpha(confusion("abac", "abbc")))
    )


def test_resampling_prompts_keeps_their_judgements_together() -> None:
    counts = np.zeros((50, 2, 2))
    counts[:25, 0, 0] = counts[25:, 1, 1] = 3
    drawn = resample(counts, 400)
    assert (drawn.sum((1, 2)) == 150).all() and (drawn % 3 == 0).all()
    assert np.std(drawn[:, 0, 0]) == pytest.approx(3 * (50 * 0.25) ** 0.5, rel=0.15)


def test_wilson_holds_where_nothing_or_all_is_hit() -> None:
    assert astuple(share(0, 10)) == pytest.approx((0, 0, 0.2775), abs=1e-4)
    assert astuple(share(10, 10)) == pytest.approx((1, 0.7225, 1), abs=1e-4)


@pytest.mark.parametrize(("audited", "judged"), [(300, 1000), (100, 1000)])
def test_the_corrected_interval_covers_the_truth_and_the_plain_one_does_not(
    audited: int, judged: int
) -> None:
    """2,000 simulated judges whose errors are known: arXiv:2511.21140."""
    rng, runs = np.random.default_rng(1), 2000
    positive = RATE * SENSITIVITY + (1 - RATE) * (1 - SPECIFICITY)
    seen = rng.binomial(judged, positive, runs) / judged
    positives = rng.binomial(audited, RATE, runs)
    right1, right0 = (
        rng.binomial(positives, SENSITIVITY),
        rng.binomial(audited - positives, SPECIFICITY),
    )
    estimate, plain = (
        corrected_rate(seen, judged, right1, positives, right0, audited - positives),
        share(seen * judged, judged),
    )
    covered = [float(((e.low <= RATE) & (e.high >= RATE)).mean()) for e in (estimate, plain)]
    assert 0.94 <= covered[0] <= 0.96
    assert covered[1] < 0.6
    assert abs(float(estimate.mean.mean()) - RATE) < 0.01 < abs(float(plain.mean.mean()) - RATE)


def test_a_judge_that_knows_nothing_corrects_nothing() -> None:
    rng = np.random.default_rng(0)
    coins = [
        discriminates(rng.binomial(60, 0.5), 60, rng.binomial(60, 0.5), 60) for _ in range(400)
    ]
    assert sum(coins) / len(coins) < 0.05
    assert (
        discriminates(51, 60, 42, 60)
        and not discriminates(9, 60, 18, 60)
        and not discriminates(5, 5, 0, 0)
    )
