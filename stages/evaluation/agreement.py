"""How far two labellers agree, and a rate corrected for how often one of them is wrong, with intervals."""

from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Number = float | Array


class Estimate(NamedTuple):
    """A number, or an array of them, with the bounds of its interval."""

    mean: Any
    low: Any
    high: Any

    def told(self) -> dict[str, float]:
        """As files and metrics hold one number."""
        return {name: float(value) for name, value in self._asdict().items()}


def z_of(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def share(hits: Number, n: Number, confidence: float = 0.95) -> Estimate:
    """The share of hits among n, with Wilson's interval (1927, JASA 22), which also holds near 0 and 1."""
    z2 = z_of(confidence) ** 2
    p = hits / n
    centre, spread = p + z2 / (2 * n), np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    return Estimate(p, (centre - spread) / (1 + z2 / n), (centre + spread) / (1 + z2 / n))


def kappa(counts: Array) -> Array:
    """Cohen's κ (1960) of confusion matrices (…, k, k); NaN where both always say the same one thing."""
    n = counts.sum((-2, -1))
    chance = (counts.sum(-1) * counts.sum(-2)).sum(-1) / n**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((np.trace(counts, axis1=-2, axis2=-1) / n - chance) / (1 - chance))


def alpha(counts: Array) -> Array:
    """Krippendorff's α for two labellers and nominal labels (2011, Computing Krippendorff's Alpha-Reliability), of
    confusion matrices (…, k, k); NaN where there is but one label."""
    values = counts.sum(-1) + counts.sum(-2)
    n = values.sum(-1)
    expected = 1 - (values * (values - 1)).sum(-1) / (n * (n - 1))
    observed = 1 - np.trace(counts, axis1=-2, axis2=-1) / counts.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - observed / expected)


def resampled(counts: Array, samples: int, seed: int = 0) -> Array:
    """Confusion matrices (samples, k, k) of prompts drawn with replacement, from those of each prompt (n, k, k)."""
    n = len(counts)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples)
    return np.asarray(np.einsum("sn,nij->sij", drawn, counts))


def corrected(
    judged: Number, n: Number, right1: Number, known1: Number, right0: Number, known0: Number, confidence: float = 0.95
) -> Estimate:
    """The true share of positives where a judge's share of n is `judged`, and where it was right on `right1` of
    `known1` positives and on `right0` of `known0` negatives (Lee et al. 2025, arXiv:2511.21140; Rogan & Gladen 1978).

    The interval has room for chance in all three; its counts have pseudo-observations, as Agresti and Coull's.
    """
    z = z_of(confidence)
    n, m1, m0 = n + z**2, known1 + 2, known0 + 2
    p, q1, q0 = (judged * (n - z**2) + z**2 / 2) / n, (right1 + 1) / m1, (right0 + 1) / m0
    youden = q0 + q1 - 1
    rate = (p + q0 - 1) / youden
    of1, of0 = q1 * (1 - q1) / m1, q0 * (1 - q0) / m0
    centre = rate + 2 * z**2 * (rate * of1 - (1 - rate) * of0)
    spread = z * np.sqrt(p * (1 - p) / n + (1 - rate) ** 2 * of0 + rate**2 * of1) / np.abs(youden)
    plain = (judged + right0 / known0 - 1) / (right0 / known0 + right1 / known1 - 1)
    return Estimate(np.clip(plain, 0, 1), np.clip(centre - spread, 0, 1), np.clip(centre + spread, 0, 1))


def tells_apart(right1: float, known1: float, right0: float, known0: float, confidence: float = 0.95) -> bool:
    """Whether sensitivity + specificity − 1 is clear of 0: else a judge knows nothing that a rate could be corrected
    by."""
    q1, q0 = (right1 + 1) / (known1 + 2), (right0 + 1) / (known0 + 2)
    error = np.sqrt(q1 * (1 - q1) / (known1 + 2) + q0 * (1 - q0) / (known0 + 2))
    return bool(known1 and known0 and q1 + q0 - 1 > z_of(confidence) * error)


def coincidences(labels: Iterable[Sequence[int]], k: int) -> Array:
    """Krippendorff's coincidences (k, k), halved: what `alpha` takes for a confusion matrix where any number of
    labellers, two or more, labelled each thing. `labels`: those that each thing got."""
    found = np.zeros((k, k))
    for each in labels:
        counts = np.bincount(each, minlength=k)
        found += (np.outer(counts, counts) - np.diag(counts)) / (2 * (len(each) - 1))
    return found
