"""How often the better of two answers has the higher reward, and whether the difference says how surely it does."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from stages.evaluation.agreement import Estimate, share

BINS = 5  # of confidence, from one half to 1


@dataclass(frozen=True)
class Scored:
    """A pair, the rewards of both completions, their tokens, and where its prompt is from."""

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
    """Accuracy, of all and by source; the same as if chosen were as often longer as shorter; calibration; and what
    length alone would choose."""
    sources = sorted({p.source for p in pairs})
    found: dict[str, Any] = {
        "accuracy": accuracy(pairs).told(),
        "by_source": {source: accuracy([p for p in pairs if p.source == source]).told() for source in sources},
        "longer_chosen": longer_chosen(pairs),
        "calibration_error": calibration_error(pairs),
        "brier": brier(pairs),
        "length_correlation": length_correlation(pairs),
    }
    if matched := length_matched(pairs):
        found["length_matched"] = matched.told()
    return found


def accuracy(pairs: Sequence[Scored]) -> Estimate:
    return share(sum(p.right for p in pairs), len(pairs))


def length_matched(pairs: Sequence[Scored]) -> Estimate | None:
    """The mean of the accuracy where chosen is longer and of that where it is shorter: whoever goes by length alone
    has one half. None where one of them has no pair."""
    longer = [p.right for p in pairs if p.chosen_tokens > p.rejected_tokens]
    shorter = [p.right for p in pairs if p.chosen_tokens < p.rejected_tokens]
    if not (longer and shorter):
        return None
    mean = (fmean(longer) + fmean(shorter)) / 2
    n = 4 / (1 / len(longer) + 1 / len(shorter))  # pairs of a plain mean as uncertain as this one
    return share(mean * n, n)


def longer_chosen(pairs: Sequence[Scored]) -> float | None:
    """How often chosen is the longer one, where lengths differ: what taking the longer would score."""
    unequal = [p.chosen_tokens > p.rejected_tokens for p in pairs if p.chosen_tokens != p.rejected_tokens]
    return float(np.mean(unequal)) if unequal else None


def confidences(pairs: Sequence[Scored]) -> tuple[Any, Any]:
    """How sure the model is of the one it prefers, from one half to 1, and whether that is right."""
    gaps = np.array([p.chosen - p.rejected for p in pairs])
    return 1 / (1 + np.exp(-np.abs(gaps))), gaps > 0


def calibration_error(pairs: Sequence[Scored]) -> float:
    """Mean |confidence - accuracy| over bins of confidence, by their pairs (Guo et al. 2017, arXiv:1706.04599)."""
    sure, right = confidences(pairs)
    bins = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = [abs(sure[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(sum(gaps))


def brier(pairs: Sequence[Scored]) -> float:
    """Mean squared error of the probability that chosen is better (Brier 1950): a coin has a quarter."""
    sure, right = confidences(pairs)
    return float(np.mean(np.where(right, 1 - sure, sure) ** 2))


def length_correlation(pairs: Sequence[Scored]) -> float | None:
    """Of reward and tokens within pairs: whether the longer of two gets the more, the longer it is."""
    gaps = np.array([[p.chosen - p.rejected, p.chosen_tokens - p.rejected_tokens] for p in pairs])
    spread = np.sqrt((gaps**2).mean(0))  # about 0, as which of two comes first says nothing
    return float((gaps[:, 0] * gaps[:, 1]).mean() / spread.prod()) if spread.all() else None
