"""Intervals of means over prompts that come in task families.

There are two questions, with different errors. *These tasks*: what would other prompts of the same families give? The
families are strata, and only the prompts within them vary. *Tasks like these*: what would other families give? The
families are a random sample, and the spread of their means is the whole error, because a family's mean already
contains the noise of its prompts. Both are t intervals with the degrees of freedom of the strata or families
(Cochran 1977, Sampling Techniques, ch. 5 and 9; Satterthwaite 1946, Biometrics Bulletin 2:6).

Near 0 and 1 a sample's spread underestimates its error: 0 of 320 has no spread at all. There the bounds come from the
score test (Wilson 1927, JASA 22): a bound is at least as uncertain as a share of that size.

An interval is valid for the trained models at hand: no interval here contains the error of training with other seeds.

Student's t distribution is at the end, for any number of degrees of freedom from 1 on, fractions included."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.store.numbers import bound, points, signed

# grid points of the integral of Student's t: quantiles have a relative error of 1e-5
POINTS = 20_001
POWER = 0.9  # probability that a claim holds at `prompts_needed` if nothing got worse
NORMAL = 10_000.0  # degrees of freedom above which the t distribution is treated as normal


@dataclass
class Interval:
    mean: float
    low: float
    high: float

    def points(self) -> str:
        """`+15.2 points (+10.1 to +20.3)`"""
        return f"{points(self.mean)} points ({self.bounds()})"

    def share(self) -> str:
        """`61.0% (56.2% to 65.7%)`"""
        return f"{self.mean:.1%} ({self.low:.1%} to {self.high:.1%})"

    def per(self, row: str) -> str:
        """`0.012 per pair (−0.003 to 0.027)`"""
        mean, low, high = (signed(number, "{:z.3g}") for number in (self.mean, self.low, self.high))
        return f"{mean} per {row} ({low} to {high})"

    def bounds(self) -> str:
        """The bounds in percentage points: `−7.1 to +3.4`."""
        return f"{bound(self.low)} to {bound(self.high)}"


class Means:
    """The mean outcome of every model on the same prompts, and the error of each mean and difference.

    Args:
        outcomes: (prompts, models): shares in [0, 1], or with `shares=False` any measure. A prompt's outcomes stay
            together, so differences are paired.
        families: the task family of each prompt.
        drawn: True for intervals about tasks like these, of which families are a sample; else about these tasks."""

    def __init__(
        self,
        outcomes: NDArray[Any],
        families: Sequence[str],
        drawn: bool = False,
        shares: bool = True,
    ):
        self.prompts, self.shares = len(outcomes), shares
        self.means = outcomes.mean(0)
        places = {family: i for i, family in enumerate(dict.fromkeys(families))}
        family_of = np.array([places[family] for family in families])
        if drawn and len(places) > 1:
            self._of_families(outcomes, family_of)
        else:
            self._of_strata(outcomes, family_of)

    def _of_families(self, outcomes: NDArray[Any], family_of: NDArray[Any]) -> None:
        """Set the residuals (families, models), whose cross products sum to the covariance of the means."""
        sizes = np.bincount(family_of)
        weights = sizes / sizes.sum()
        means = totals(outcomes, family_of) / sizes[:, None]
        self.residuals = (weights / np.sqrt(1 - weights))[:, None] * (means - self.means)
        self.stratum_of = np.zeros(len(sizes), int)
        # Families of unequal size are worth fewer degrees of freedom than their number.
        self.freedom = np.array([max(1.0, 1 / (weights**2).sum() - 1)])

    def _of_strata(self, outcomes: NDArray[Any], family_of: NDArray[Any]) -> None:
        """Set the residuals (prompts, models) from each family's mean. A family of one prompt has no spread: such
        families form one stratum together, or join the smallest other."""
        sizes = np.bincount(family_of)
        single = sizes[family_of] == 1
        if single.sum() > 1:
            family_of = np.where(single, family_of[single][0], family_of)
        elif single.any() and len(sizes) > 1:
            family_of = np.where(
                single, np.where(sizes > 1, sizes, np.iinfo(int).max).argmin(), family_of
            )
        self.stratum_of = np.unique(family_of, return_inverse=True)[1]
        sizes = np.bincount(self.stratum_of)
        means = totals(outcomes, self.stratum_of) / sizes[:, None]
        inflated = np.sqrt(sizes / np.maximum(1, sizes - 1))[self.stratum_of]
        self.residuals = inflated[:, None] * (outcomes - means[self.stratum_of]) / self.prompts
        self.freedom = np.maximum(1.0, sizes - 1)

    def error(self, residuals: NDArray[Any]) -> tuple[float, float]:
        """The standard error of a mean or difference and its degrees of freedom, from `residuals` (units,)."""
        of_strata = np.bincount(self.stratum_of, residuals**2)
        if (variance := of_strata.sum()) < 1e-24:
            return 0.0, float(self.freedom.sum())
        return math.sqrt(variance), float(variance**2 / (of_strata**2 / self.freedom).sum())

    def share(self, model: int, confidence: float = 0.95) -> Interval:
        """The share of prompts that a model passes, with a score interval."""
        error, freedom = self.error(self.residuals[:, model])
        mean, t = float(self.means[model]), student_quantile((1 + confidence) / 2, freedom)
        # the variance if prompts were a simple random sample
        plain = mean * (1 - mean) / self.prompts
        # Equal outcomes count as one draw per unit: a prompt, or a family where families are the sample.
        k = error**2 / plain / self.prompts if plain and error else 1 / len(self.residuals)
        low, high = score_bounds(mean, t * t * k)
        return Interval(mean, low, high)

    def tested_share(self, model: int, confidence: float = 0.95) -> Interval:
        """The share, with bounds that exclude one half where the exact binomial test does: a score interval with a
        correction for continuity (Newcombe 1998, Statistics in Medicine 17), for independent draws of equal error."""
        error, freedom = self.error(self.residuals[:, model])
        mean, draws = float(self.means[model]), float(len(self.residuals))
        if error:
            draws = 1 + mean * (1 - mean) / error**2
        probability = (1 + confidence) / 2
        quantile = NormalDist().inv_cdf(probability)
        if len(self.residuals) < self.prompts:  # few families say less about the error
            quantile = student_quantile(probability, freedom)
        step, k = 0.5 / draws, quantile**2 / draws
        low, _ = score_bounds(max(0.0, mean - step), k)
        _, high = score_bounds(min(1.0, mean + step), k)
        return Interval(mean, low, high)

    def difference(self, a: int, b: int, confidence: float = 0.95) -> Interval:
        """The mean difference a − b with its interval; with one prompt the bounds are the widest possible."""
        error, freedom = self.error(self.residuals[:, a] - self.residuals[:, b])
        mean = float(self.means[a] - self.means[b])
        t = student_quantile((1 + confidence) / 2, freedom)
        margin = t * error if self.prompts > 1 else math.inf
        if not self.shares:
            return Interval(mean, mean - margin, mean + margin)
        k = t * t / self.prompts
        low = min(mean - margin, -score_bounds(-mean, k)[1], score_bounds(mean, k)[0])
        high = max(mean + margin, score_bounds(mean, k)[1], -score_bounds(-mean, k)[0])
        return Interval(mean, max(-1.0, low), min(1.0, high))


def totals(outcomes: NDArray[Any], group_of: NDArray[Any]) -> NDArray[np.float64]:
    """Sum the outcomes of each group: (groups, models)."""
    return np.stack([np.bincount(group_of, column) for column in outcomes.T], 1)


def score_bounds(mean: float, k: float) -> tuple[float, float]:
    """The two shares θ with (θ − mean)² = k·θ(1 − θ), the lower first; the mean twice if there is no solution."""
    if (root := k * k + 4 * k * mean * (1 - mean)) < 0:
        return mean, mean
    low, high = ((2 * mean + k + sign * math.sqrt(root)) / (2 * (1 + k)) for sign in (-1, 1))
    return low, high


def paired(before: Sequence[float], after: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean difference of two measurements of the same rows, with a t interval; infinite bounds for one row."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    mean, n = fmean(differences), len(differences)
    margin = (
        student_quantile((1 + confidence) / 2, n - 1) * stdev(differences) / n**0.5
        if n > 1
        else math.inf
    )
    return Interval(mean, mean - margin, mean + margin)


@lru_cache(maxsize=256)
def student_distribution(freedom: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Angles and the probability below each, where t = √freedom · tan(angle) has a density ∝ cos^(freedom − 1)."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, POINTS)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return angles, below / below[-1]


def student_quantile(probability: float, freedom: float) -> float:
    """The value that a t-distributed draw stays below with this probability."""
    freedom = min(max(1.0, freedom), NORMAL)
    angles, below = student_distribution(round(freedom, 2))
    return math.sqrt(freedom) * math.tan(float(np.interp(probability, below, angles)))


def student_exceeding(t: float, freedom: float) -> float:
    """The probability of a draw of `t` or more."""
    freedom = min(max(1.0, freedom), NORMAL)
    angles, below = student_distribution(round(freedom, 2))
    # symmetric: the tail below −t
    return float(np.interp(math.atan(-t / math.sqrt(freedom)), angles, below))


def binomial(hits: int, n: int, probability: float) -> float:
    """The probability of at most `hits` hits among n draws."""
    # logarithms
    ways = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(hits + 1)
    ]
    logs = [
        log + k * math.log(probability) + (n - k) * math.log1p(-probability)
        for k, log in enumerate(ways)
    ]
    return min(1.0, math.fsum(math.exp(log) for log in logs))


def prompts_needed(variance: float, above: float, alpha: float, fall: float = 0.0) -> int | None:
    """The number of prompts at which a claim holds with probability POWER; None if no number suffices.

    Args:
        variance: the variance of the paired differences.
        above: the distance of their mean from what the claim excludes.
        fall: the most that one outcome can get worse, 0 if unknown: the variance is at least that of a few such."""
    if above <= 0:
        return None
    quantile = NormalDist().inv_cdf
    return math.ceil(
        max(variance, above * (fall - above))
        * ((quantile(1 - alpha) + quantile(POWER)) / above) ** 2
    )
