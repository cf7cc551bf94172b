"""Tests that a model is no worse than another by more than a margin, on the same prompts, and how many they need.

A small probability p says that the data would hardly look so if it were worse by the margin or more. That nothing got
worse among few prompts proves little: among 64, a model that is worse on 2% of all prompts shows none of it one time
in four. So no p is below the probability of not having met what would make the claim false.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from stages.evaluation import student

POWER = 0.9  # with which a claim holds, if nothing got worse, at the number of prompts that is told

Array = NDArray[np.float64]


def of_shares(policy: Array, other: Array, margin: float) -> float:
    """The p of the claim that a share of prompts has fallen by less than `margin`. policy, other: (prompts,), 0 or 1.

    The score test of paired proportions (Tango 1998, Statistics in Medicine 17:8), and where prompts are few the exact
    binomial one, which a policy that can only lose would get.
    """
    n, gained, lost = len(policy), int((policy > other).sum()), int((policy < other).sum())
    a = 2 * n
    b = -gained - lost - (2 * n - gained + lost) * margin
    c = lost * margin * (1 + margin)
    losing = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # its probability, if worse by the margin
    error = math.sqrt(n * (2 * losing - margin * (1 + margin)))
    score = (gained - lost + n * margin) / error
    return max(1 - NormalDist().cdf(score), binomial(max(0, lost - gained), n, margin))


def of_means(policy: Array, other: Array, margin: float, lowest: float | None = None) -> float:
    """The p of the claim that a mean has fallen by less than `margin`, by Student's paired test. policy, other:
    (prompts,).

    lowest: the lowest that a difference can be, where there is one. Had so many prompts that outcome that the claim
    were false, it would be the probability of having met none of them.
    """
    difference = policy - other
    n, mean = len(difference), float(difference.mean())
    above = mean + margin
    error = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    p = student.exceeding(above / error, n - 1) if error else float(above <= 0)
    if lowest is None or above <= 0:
        return p
    return max(p, (1 - above / (mean - lowest)) ** n)


def binomial(hits: int, n: int, probability: float) -> float:
    """The probability of so many hits or fewer among n."""
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        + k * math.log(probability) + (n - k) * math.log1p(-probability)
        for k in range(hits + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(math.exp(log) for log in logs))


def prompts_needed(variance: float, above: float, alpha: float, fall: float = 0.0) -> int | None:
    """How many prompts let a claim hold with probability POWER; None where none would.

    Args:
        variance: of the paired differences.
        above: how far their mean is above what the claim excludes.
        fall: by how much one outcome can get worse at most, where that is known; were the claim false by a few such
            outcomes, that would be the variance.
    """
    if above <= 0:
        return None
    quantile = NormalDist().inv_cdf
    return math.ceil(max(variance, above * (fall - above)) * ((quantile(1 - alpha) + quantile(POWER)) / above) ** 2)
