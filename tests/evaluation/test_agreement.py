"""Agreement against published examples."""

import numpy as np
import pytest

from stages.evaluation.agreement import alpha, coincidences, resample, share


def confusion(one: str, other: str) -> np.ndarray:
    words = sorted({*one, *other})
    counts = np.zeros((len(words), len(words)))
    for a, b in zip(one, other, strict=True):
        counts[words.index(a), words.index(b)] += 1
    return counts


def test_alpha_is_that_of_the_textbook() -> None:
    """Krippendorff's two coders of ten articles (2011, p. 2): α = 0.095."""
    counts = confusion("0100000010", "1110010000")
    assert float(alpha(counts)) == pytest.approx(0.095, abs=5e-4)
    assert float(alpha(confusion("abca", "abca"))) == 1
    assert np.isnan(alpha(confusion("aaa", "aaa"))), "α is undefined with a single label"


def test_alpha_of_any_number_of_labellers_is_that_of_the_textbook() -> None:
    """Krippendorff's four observers of twelve units with missing labels (2011, p. 5): α = 0.743."""
    observers = "123321412...", "1233224125.3", ".3332342251.", "12332441251."
    units = [[int(label) - 1 for label in unit if label != "."] for unit in zip(*observers, strict=True)]
    several = [unit for unit in units if len(unit) > 1]
    assert float(alpha(coincidences(several, 5))) == pytest.approx(0.743, abs=5e-4)
    two = [[i, j] for i, j in zip([0, 1, 0, 2], [0, 1, 1, 2], strict=True)]
    assert float(alpha(coincidences(two, 3))) == pytest.approx(float(alpha(confusion("abac", "abbc"))))


def test_resampling_prompts_keeps_their_judgements_together() -> None:
    counts = np.zeros((50, 2, 2))
    counts[:25, 0, 0] = counts[25:, 1, 1] = 3
    drawn = resample(counts, 400)
    assert (drawn.sum((1, 2)) == 150).all() and (drawn % 3 == 0).all()
    assert np.std(drawn[:, 0, 0]) == pytest.approx(3 * (50 * 0.25) ** 0.5, rel=0.15)


def test_wilson_holds_where_nothing_or_all_is_hit() -> None:
    assert share(0, 10)[:3] == pytest.approx((0, 0, 0.2775), abs=1e-4)
    assert share(10, 10)[:3] == pytest.approx((1, 0.7225, 1), abs=1e-4)
