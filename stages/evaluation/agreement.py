"""Agreement of two labellers."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


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


def coincidences(labels: Iterable[Sequence[int]], k: int) -> Array:
    """Krippendorff's coincidence matrix (k, k), halved, as `alpha` takes a confusion matrix. `labels`: per item."""
    total = np.zeros((k, k))
    for item_labels in labels:
        counts = np.bincount(item_labels, minlength=k)
        total += (np.outer(counts, counts) - np.diag(counts)) / (2 * (len(item_labels) - 1))
    return total
