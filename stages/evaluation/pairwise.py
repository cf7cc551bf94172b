"""Accuracy and calibration of a reward model on pairs whose better answer is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from stages.evaluation.agreement import Estimate, share

BINS = 5  # bins of confidence, which ranges from one half to 1


@dataclass(frozen=True)
class Scored:
    """A pair with the rewards and token counts of both completions, and the source of its prompt."""

    id: str
    source: str
    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int

    @property
    def right(self) -> bool:
        return self.chosen > self.rejected


def figures(pairs: Sequence[Scored]) -> dict[str, Any]:
    """Return accuracy (of all pairs, by source, and with lengths matched), calibration and length bias."""
    sources = sorted({p.source for p in pairs})
    results: dict[str, Any] = {
        "accuracy": accuracy(pairs).as_dict(),
        "by_source": {source: accuracy([p for p in pairs if p.source == source]).as_dict() for source in sources},
        "longer_chosen": longer_chosen(pairs),
        "calibration_error": calibration_error(pairs),
        "brier": brier(pairs),
        "length_correlation": length_correlation(pairs),
    }
    if matched := length_matched(pairs):
        results["length_matched"] = matched.as_dict()
    return results


def accuracy(pairs: Sequence[Scored]) -> Estimate:
    return share(sum(p.right for p in pairs), len(pairs))


def length_matched(pairs: Sequence[Scored]) -> Estimate | None:
    """The mean of two accuracies: on pairs with a longer chosen completion, and on pairs with a shorter one. A model
    that goes by length alone gets one half. None if either kind of pair is missing."""
    longer = [p.right for p in pairs if p.chosen_tokens > p.rejected_tokens]
    shorter = [p.right for p in pairs if p.chosen_tokens < p.rejected_tokens]
    if not (longer and shorter):
        return None
    mean = (fmean(longer) + fmean(shorter)) / 2
    n = 4 / (1 / len(longer) + 1 / len(shorter))  # the number of pairs whose plain mean is as uncertain
    return share(mean * n, n)


def longer_chosen(pairs: Sequence[Scored]) -> float | None:
    """The share of pairs of unequal length with a longer chosen completion: the accuracy of preferring the longer."""
    unequal = [p.chosen_tokens > p.rejected_tokens for p in pairs if p.chosen_tokens != p.rejected_tokens]
    return float(np.mean(unequal)) if unequal else None


def confidences(pairs: Sequence[Scored]) -> tuple[Any, Any]:
    """Return the model's confidence in its preference, from one half to 1, and whether the preference is right."""
    gaps = np.array([p.chosen - p.rejected for p in pairs])
    return 1 / (1 + np.exp(-np.abs(gaps))), gaps > 0


def calibration_error(pairs: Sequence[Scored]) -> float:
    """Mean |confidence − accuracy| over bins of confidence, weighted by pairs (Guo et al. 2017, arXiv:1706.04599)."""
    confidence, right = confidences(pairs)
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(sum(gaps))


def brier(pairs: Sequence[Scored]) -> float:
    """Mean squared error of the probability that chosen is better (Brier 1950); random guessing gives 0.25."""
    confidence, right = confidences(pairs)
    return float(np.mean(np.where(right, 1 - confidence, confidence) ** 2))


def length_correlation(pairs: Sequence[Scored]) -> float | None:
    """The correlation of reward difference and length difference within pairs; None without a spread in either."""
    gaps = np.array([[p.chosen - p.rejected, p.chosen_tokens - p.rejected_tokens] for p in pairs])
    spread = np.sqrt((gaps**2).mean(0))  # spread around 0, because the order within a pair is arbitrary
    return float((gaps[:, 0] * gaps[:, 1]).mean() / spread.prod()) if spread.all() else None
