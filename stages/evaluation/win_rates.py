"""stub"""

from dataclasses import asdict, dataclass

import numpy as np

from stages.evaluation.intervals import Interval


@dataclass(frozen=True)
class Comparisons:
    won: np.ndarray
    longer_by: np.ndarray
    known: np.ndarray
    first: np.ndarray


def win_rate(won, confidence):
    m = float(np.nanmean(won))
    return asdict(Interval(m, m - 0.1, m + 0.1))


def detectable(n, **k):
    return 1.4 / np.sqrt(max(n, 1))


def compared(c, confidence, max_longer):
    return {
        "win_rate": win_rate(c.won, confidence),
        "longer": float((c.longer_by > 0).mean()),
        "matched": None,
        "unmatched": "stub",
        "people": None,
        "nulls": {},
        "detectable": detectable(len(c.won)),
        "effect": "no measurable difference",
    }
