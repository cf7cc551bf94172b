"""The scores of `label.combine=gate`: 0 for a candidate that fails a gate, and 1 + σ(z) for one that passes.

σ is the logistic function. z is a quality minus the mean of its prompt's passing candidates, divided by the deviation
within prompts, pooled over all prompts that are scored together. No floor is added to the deviation: another scale of
the quality, or a constant that is added to it, changes no score."""

from collections.abc import Mapping
from math import hypot, sqrt, tanh
from statistics import fmean
from typing import NamedTuple

from stages.evaluation.relative_scores import Gather


class Spread(NamedTuple):
    """The root of the squared differences from the means of prompts, and their degrees of freedom."""

    root: float
    freedom: int


def scores_of_passing(
    qualities_by_prompt: Mapping[str, Mapping[str, float]], gather: Gather
) -> dict[str, float]:
    """Return by candidate 1 + σ(z), from the qualities of the candidates that pass. If no two qualities of a prompt
    differ anywhere, every score is 1.5. `gather`: of the processes that score at once, each with its own prompts."""
    differences = dict[str, float]()
    freedom = 0
    for qualities in qualities_by_prompt.values():
        differences |= differences_from_mean(qualities)
        freedom += max(0, len(qualities) - 1)
    spreads: list[Spread] = gather([Spread(hypot(*differences.values()), freedom)])
    root = hypot(*[spread.root for spread in spreads])
    if root == 0:
        return dict.fromkeys(differences, 1.5)
    deviation = root / sqrt(sum(spread.freedom for spread in spreads))
    return {name: 1 + logistic(gap / deviation) for name, gap in differences.items()}


def differences_from_mean(qualities: Mapping[str, float]) -> dict[str, float]:
    """Return by candidate its quality minus the mean. Equal qualities have the difference 0, whatever their size."""
    if not qualities:
        return {}
    lowest = min(qualities.values())
    gaps = {name: quality - lowest for name, quality in qualities.items()}
    mean = fmean(gaps.values())
    return {name: gap - mean for name, gap in gaps.items()}


def logistic(z: float) -> float:
    return (1 + tanh(z / 2)) / 2  # exp would overflow where z is below -709
