"""Agreement of labellers, and shares with their intervals."""

from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Number = float | Array


class Estimate(NamedTuple):
    """A number with the bounds of its interval; each field may also be an array."""

    mean: Any
    low: Any
    high: Any

    def as_dict(self) -> dict[str, float]:
        """Return the number and its bounds as floats, as files and metrics store them."""
        return {name: float(value) for name, value in self._asdict().items()}


def z_score(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def share(hits: Number, n: Number, confidence: float = 0.95) -> Estimate:
    """The share of hits among n, with Wilson's interval (1927, JASA 22), which stays accurate near 0 and 1."""
    z2 = z_score(confidence) ** 2
    p = hits / n
    centre, spread = p + z2 / (2 * n), np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    return Estimate(p, (centre - spread) / (1 + z2 / n), (centre + spread) / (1 + z2 / n))


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


def coincidences(labels: Iterable[Sequence[int]], k: int) -> Array:
    """Krippendorff's coincidence matrix (k, k), halved, which `alpha` accepts as a confusion matrix. `labels`: for
    each item, the labels from two or more labellers."""
    total = np.zeros((k, k))
    for item_labels in labels:
        counts = np.bincount(item_labels, minlength=k)
        total += (np.outer(counts, counts) - np.diag(counts)) / (2 * (len(item_labels) - 1))
    return total
