"""Agreement against published examples, and the corrected rate against judges whose errors are known."""

import numpy as np
import pytest

from stages.evaluation.agreement import (
    alpha,
    coincidences,
    kappa,
)
from stages.evaluation.estimate import corrected_rate, discriminates
from tests.helpers import confusion

RATE = 0.6
SENSITIVITY = 0.85
SPECIFICITY = 0.7


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
    units = list[list[int]]()
    for unit in zip(*observers, strict=True):
        labels = [int(label) - 1 for label in unit if label != "."]
        if len(labels) > 1:
            units.append(labels)
    assert float(alpha(coincidences(units, 5))) == pytest.approx(0.743, abs=5e-4)


def test_the_corrected_interval_covers_the_truth_and_the_plain_one_does_not() -> None:
    """2,000 simulated judges whose errors are known: arXiv:2511.21140."""
    rng = np.random.default_rng(1)
    runs = 2000
    audited = 300
    judged = 1000
    positive = RATE * SENSITIVITY + (1 - RATE) * (1 - SPECIFICITY)
    seen = rng.binomial(judged, positive, runs) / judged
    positives = rng.binomial(audited, RATE, runs)
    negatives = audited - positives
    right_positives = rng.binomial(positives, SENSITIVITY)
    right_negatives = rng.binomial(negatives, SPECIFICITY)
    corrected = corrected_rate(seen, judged, right_positives, positives, right_negatives, negatives)
    assert 0.94 <= ((corrected.low <= RATE) & (corrected.high >= RATE)).mean() <= 0.96
    assert abs(float(corrected.mean.mean()) - RATE) < 0.01
    plain = 2 * (seen * (1 - seen) / judged) ** 0.5
    assert (abs(seen - RATE) <= plain).mean() < 0.6


def test_a_judge_that_knows_nothing_corrects_nothing() -> None:
    rng = np.random.default_rng(0)
    discriminating = 0
    for _ in range(400):
        discriminating += discriminates(rng.binomial(60, 0.5), 60, rng.binomial(60, 0.5), 60)
    assert discriminating < 20
    assert discriminates(51, 60, 42, 60)
    assert not discriminates(9, 60, 18, 60)
