"""Intervals that take into account that prompts come in task families (two-level bootstrap), or in pairs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.store.numbers import points, signed


@dataclass
class Interval:
    mean: float
    low: float
    high: float

    def points(self) -> str:
        """`+15.2 points (+10.1 to +20.3)`"""
        return f"{points(self.mean)} points ({self.bounds()})"

    def per(self, row: str) -> str:
        """`0.012 per pair (−0.003 to 0.027)`"""
        mean, low, high = (signed(number, "{:z.3g}") for number in (self.mean, self.low, self.high))
        return f"{mean} per {row} ({low} to {high})"

    def bounds(self) -> str:
        """In points: `−7.1 to +3.4`"""
        return f"{points(self.low)} to {points(self.high)}"


def resampled_means(
    outcomes: NDArray[Any], families: list[str], samples: int, rng: np.random.Generator
) -> NDArray[Any]:
    """Means under resampling of families, then of prompts within each drawn family (Davison & Hinkley 1997, §3.8).

    Args:
        outcomes: (prompts, models). A prompt's outcomes stay together, so differences are paired.
        families: the family of each prompt.

    Returns:
        (samples, models) means over all prompts drawn.
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


def interval(mean: float, draws: NDArray[Any], confidence: float, families: list[str]) -> Interval:
    """The percentile interval, expanded for the number of families (of prompts, where all are of one)."""
    tail = NormalDist().cdf(-expanded((1 + confidence) / 2, families))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(mean), float(low), float(high))


def expanded(probability: float, families: list[str]) -> float:
    """The normal quantile that a bootstrap has to be read at.

    A bootstrap of n families is too narrow by sqrt((n - 1) / n) and by normal instead of t quantiles; the expanded
    percentile interval makes up for both (Hesterberg 2015, The American Statistician 69:4).
    """
    n = len(set(families)) if len(set(families)) > 1 else len(families)
    if n == 1:
        return NormalDist().inv_cdf(probability)
    return float((n / (n - 1)) ** 0.5 * t_quantile(probability, n - 1))


def share(outcomes: NDArray[Any], draws: NDArray[Any], confidence: float, families: list[str]) -> Interval:
    """The interval of a share. Outcomes that are all alike, which no resampling varies, have the exact one-sided limit
    (Clopper & Pearson 1934, Biometrika 26:4): 0 of 320 may be up to 0.9%."""
    found = interval(outcomes.mean(), draws, confidence, families)
    doubt = 1 - (1 - confidence) ** (1 / len(outcomes))
    if found.mean == 0:
        return Interval(0.0, 0.0, doubt)
    return Interval(1.0, 1 - doubt, 1.0) if found.mean == 1 else found


def paired(before: Sequence[float], after: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean difference of two measurements of the same rows, with its t interval; of one row it has no bounds."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    mean, n = fmean(differences), len(differences)
    margin = math.inf
    if n > 1:
        margin = t_quantile((1 + confidence) / 2, n - 1) * stdev(differences) / n**0.5
    return Interval(mean, mean - margin, mean + margin)


def t_quantile(probability: float, freedom: int) -> float:
    """Of Student's t distribution: exact for 1 and 2 degrees of freedom, else within 3% (Abramowitz & Stegun 1964,
    26.7.5)."""
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        centred = 2 * probability - 1
        return centred * math.sqrt(2 / (1 - centred**2))
    x, v = NormalDist().inv_cdf(probability), freedom
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
    )
    return x + sum(term / v**k for k, term in enumerate(terms, 1))
