"""Student's t distribution, for any number of degrees of freedom from 1 on, fractions included."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

POINTS = 20_001  # of the integral: a quantile is right to 1e-5 of itself
NORMAL = 10_000.0  # degrees of freedom from which on it is the normal distribution


@lru_cache(maxsize=256)
def distribution(freedom: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Angles and the probability below each: t = √freedom · tan(angle), whose density goes with cos^(freedom − 1)."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, POINTS)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return angles, below / below[-1]


def quantile(probability: float, freedom: float) -> float:
    """The t that a draw stays below with this probability."""
    freedom = min(max(1.0, freedom), NORMAL)
    angles, below = distribution(round(freedom, 2))
    return math.sqrt(freedom) * math.tan(float(np.interp(probability, below, angles)))


def exceeding(t: float, freedom: float) -> float:
    """The probability of a draw of `t` or more."""
    freedom = min(max(1.0, freedom), NORMAL)
    angles, below = distribution(round(freedom, 2))
    return float(np.interp(math.atan(-t / math.sqrt(freedom)), angles, below))  # symmetric: the tail below −t
