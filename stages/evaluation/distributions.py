"""Binomial, beta and Student's t distributions, all from the regularised incomplete beta function.

Counts and degrees of freedom may be fractions, because effective sample sizes are."""

import math
from functools import lru_cache
from statistics import NormalDist

TINY = 1e-300
PRECISION = 1e-13
STEPS = 10_000  # of a continued fraction that takes about √(a + b) of them
NORMAL = 1e7  # degrees of freedom above which the t distribution is treated as normal


def beta_below(x: float, a: float, b: float) -> float:
    """Return the probability that a draw from the beta distribution (a, b) is at most `x`."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    logs = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    weight = math.exp(logs + a * math.log(x) + b * math.log1p(-x))
    # The fraction converges fast below the mean only; above it, the mirrored one does.
    if x < (a + 1) / (a + b + 2):
        return weight * continued_fraction(x, a, b) / a
    return 1 - weight * continued_fraction(1 - x, b, a) / b


def continued_fraction(x: float, a: float, b: float) -> float:
    """Evaluate the continued fraction of the incomplete beta function (DLMF 8.17.22) by Lentz's method."""
    numerator, denominator = 1.0, 1 / nonzero(1 - (a + b) * x / (a + 1))
    value = denominator
    for m in range(1, STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            denominator = 1 / nonzero(1 + term * denominator)
            numerator = nonzero(1 + term / numerator)
            value *= numerator * denominator
        if abs(numerator * denominator - 1) < PRECISION:
            break
    return value


def nonzero(number: float) -> float:
    return number if abs(number) > TINY else TINY


@lru_cache(maxsize=4096)
def beta_quantile(probability: float, a: float, b: float) -> float:
    """Return the value that a draw from the beta distribution (a, b) stays below with this probability."""
    mean = a / (a + b)
    deviation = math.sqrt(mean * (1 - mean) / (a + b + 1))
    low, high, x = 0.0, 1.0, mean + NormalDist().inv_cdf(probability) * deviation
    x = x if low < x < high else mean
    logs = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    while high - low > PRECISION * high:
        excess = beta_below(x, a, b) - probability
        low, high = (low, x) if excess > 0 else (x, high)
        density = math.exp(logs + (a - 1) * math.log(x) + (b - 1) * math.log1p(-x))
        newton = x - excess / nonzero(density)
        # Newton's method doubles the digits that are right.
        if abs(newton - x) <= PRECISION**0.5 * x:
            return min(max(newton, low), high)
        x = newton if low < newton < high else (low + high) / 2
    return x


def binomial_at_most(hits: float, n: float, probability: float) -> float:
    """Return the probability of at most `hits` hits among n draws."""
    return 1 - beta_below(probability, hits + 1, n - hits) if hits < n else 1.0


def student_exceeding(t: float, freedom: float) -> float:
    """Return the probability that a t-distributed draw is `t` or more."""
    if freedom > NORMAL:
        return NormalDist().cdf(-t)
    beyond = beta_below(freedom / (freedom + t * t), freedom / 2, 0.5) / 2
    return beyond if t > 0 else 1 - beyond


@lru_cache(maxsize=4096)
def student_quantile(probability: float, freedom: float) -> float:
    """Return the value, for a probability of one half or more, that a t-distributed draw stays below."""
    if freedom > NORMAL:
        return NormalDist().inv_cdf(probability)
    # t² / (freedom + t²) has the beta distribution (½, freedom / 2)
    part = beta_quantile(2 * probability - 1, 0.5, freedom / 2)
    return math.sqrt(freedom * part / (1 - part))
