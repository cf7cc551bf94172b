"""Agreement of two labellers, and rates corrected for a judge's errors, with intervals."""

from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.intervals import Interval

Array = NDArray[np.float64]


def z_score(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def share(hits: float, n: float, confidence: float = 0.95) -> Interval:
    """The share of hits among n, with Wilson's interval (1927, JASA 22), which stays accurate near 0 and 1."""
    z2 = z_score(confidence) ** 2
    p = hits / n
    centre, spread = p + z2 / (2 * n), np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    return Interval(p, (centre - spread) / (1 + z2 / n), (centre + spread) / (1 + z2 / n))


def kappa(counts: Array) -> Array:
    """Cohen's κ (1960) of confusion matrices (…, k, k); NaN where both labellers use one and the same label only."""
    n = counts.sum((-2, -1))
    chance = (counts.sum(-1) * counts.sum(-2)).sum(-1) / n**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((np.trace(counts, axis1=-2, axis2=-1) / n - chance) / (1 - chance))


def alpha(counts: Array) -> Array:
    """Krippendorff's α for two labellers and nominal labels (2011, Computing Krippendorff's Alpha-Reliability), from
    confusion matrices (…, k, k); NaN where only one label occurs."""
    values = counts.sum(-1) + counts.sum(-2)
    n = values.sum(-1)
    expected = 1 - (values * (values - 1)).sum(-1) / (n * (n - 1))
    observed = 1 - np.trace(counts, axis1=-2, axis2=-1) / counts.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - observed / expected)


def resample(counts: Array, samples: int, seed: int = 0) -> Array:
    """Draw prompts with replacement: (samples, k, k) confusion matrices from one matrix per prompt (n, k, k)."""
    n = len(counts)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples)
    return np.asarray(np.einsum("sn,nij->sij", drawn, counts))


def corrected_rate(
    judged: float,
    n: float,
    right1: float,
    known1: float,
    right0: float,
    known0: float,
    confidence: float = 0.95,
) -> Interval:
    """Estimate the true share of positives from a judge's share, `judged`, of n (Lee et al. 2025, arXiv:2511.21140).
    The judge was right on `right1` of `known1` known positives and on `right0` of `known0` known negatives (Rogan &
    Gladen 1978). The interval covers the sampling error of all three rates, with Agresti-Coull pseudo-observations."""
    z = z_score(confidence)
    n, m1, m0 = n + z**2, known1 + 2, known0 + 2
    p, q1, q0 = (judged * (n - z**2) + z**2 / 2) / n, (right1 + 1) / m1, (right0 + 1) / m0
    youden = q0 + q1 - 1
    rate = (p + q0 - 1) / youden
    variance1, variance0 = q1 * (1 - q1) / m1, q0 * (1 - q0) / m0
    centre = rate + 2 * z**2 * (rate * variance1 - (1 - rate) * variance0)
    spread = (
        z
        * np.sqrt(p * (1 - p) / n + (1 - rate) ** 2 * variance0 + rate**2 * variance1)
        / np.abs(youden)
    )
    plain = (judged + right0 / known0 - 1) / (right0 / known0 + right1 / known1 - 1)
    return Interval(
        np.clip(plain, 0, 1), np.clip(centre - spread, 0, 1), np.clip(centre + spread, 0, 1)
    )


def discriminates(
    right1: float, known1: float, right0: float, known0: float, confidence: float = 0.95
) -> bool:
    """Return True if sensitivity + specificity − 1 is significantly above 0; otherwise no rate can be corrected."""
    q1, q0 = (right1 + 1) / (known1 + 2), (right0 + 1) / (known0 + 2)
    error = np.sqrt(q1 * (1 - q1) / (known1 + 2) + q0 * (1 - q0) / (known0 + 2))
    return bool(known1 and known0 and q1 + q0 - 1 > z_score(confidence) * error)


def coincidences(labels: Iterable[Sequence[int]], k: int) -> Array:
    """Krippendorff's coincidence matrix (k, k), halved, as `alpha` takes a confusion matrix. `labels`: per item."""
    total = np.zeros((k, k))
    for item_labels in labels:
        counts = np.bincount(item_labels, minlength=k)
        total += (np.outer(counts, counts) - np.diag(counts)) / (2 * (len(item_labels) - 1))
    return total
