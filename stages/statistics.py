"""Intervals that take into account that prompts come in task families (two-level bootstrap)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Interval:
    mean: float
    low: float
    high: float

    def points(self) -> str:
        """`+15.2 points (+10.1 to +20.3)`."""
        return f"{100 * self.mean:+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def resampled_rates(
    outcomes: NDArray[Any], families: list[str], samples: int, rng: np.random.Generator
) -> NDArray[Any]:
    """Rates under resampling of families, then of prompts within each drawn family (Davison & Hinkley 1997, §3.8).

    Args:
        outcomes: (prompts, models), 0 or 1. A prompt's outcomes stay together, so differences are paired.
        families: the family of each prompt.

    Returns:
        (samples, models) rates.
    """
    patterns, pattern_of = np.unique(outcomes, axis=0, return_inverse=True)
    names, family_of = np.unique(families, return_inverse=True)
    counts = np.zeros((len(names), len(patterns)))
    np.add.at(counts, (family_of, pattern_of.ravel()), 1)
    sizes = counts.sum(1)
    # How often each family is drawn, then which outcomes its prompts have: (samples, families, patterns)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    prompts = rng.multinomial((drawn * sizes).astype(np.int64), counts / sizes[:, None])
    totals = prompts.sum(1)
    return np.asarray(totals @ patterns / totals.sum(1, keepdims=True))


def interval(mean: float, draws: NDArray[Any], confidence: float) -> Interval:
    """The percentile interval."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(mean), float(low), float(high))
