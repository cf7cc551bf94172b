"""Which of several models is best, and whether that is more than chance among so many."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.intervals import Interval, Means

DRAWS = 20_000  # of the errors of all models together
CONFIDENCE = 0.95


@dataclass
class Comparison:
    """Every model against every other. `level[i]`: the confidence of each interval against model i, with which all of
    them hold together with the probability CONFIDENCE."""

    means: Means
    level: NDArray[np.float64]

    def alone(self, i: int, j: int) -> Interval:
        """How far j is above i: the interval that an evaluation of the two prints."""
        return self.means.difference(j, i, CONFIDENCE)

    def between(self, i: int, j: int) -> Interval:
        """How far j is above i, corrected for all that are held against i."""
        return self.means.difference(j, i, float(self.level[i]))

    def better(self, j: int, i: int) -> bool:
        """Whether j is above i by more than chance among so many."""
        return self.between(i, j).low > 0

    def rivals(self, best: int, among: list[int]) -> list[int]:
        """Those, besides the best, that nothing among them is better than: each of them may be the best in truth."""
        return [i for i in among if i != best and not any(self.better(j, i) for j in among)]


def compared(outcomes: NDArray[Any], families: Sequence[str], drawn: bool = False, shares: bool = True) -> Comparison:
    """Hold every model against every other on the same prompts; arguments as those of `Means`.

    The highest of many rates is high by chance as well, so no difference is judged by its own interval. For every
    model i the errors of all differences from i are drawn together, each in units of its own standard error, and the
    largest of them in 19 of 20 draws is what counts as chance (Hothorn, Bretz and Westfall 2008, Biometrical Journal
    50:3; with SFT as i it is the reality check of White 2000, Econometrica 68:5). Models that answer alike cost
    nothing, as their errors are the same. The models that no other exceeds hold the best one with the same confidence
    (Hsu 1981, Annals of Statistics 9:5).
    """
    means = Means(outcomes, families, drawn, shares)
    scales, directions = np.linalg.eigh(means.residuals.T @ means.residuals)
    normals = np.random.default_rng(0).standard_normal((DRAWS, len(scales)))
    errors = normals @ (directions * np.sqrt(np.maximum(scales, 0))).T
    level = np.full(len(scales), CONFIDENCE)
    for i in range(len(scales)):
        drawn_from_i = errors - errors[:, [i]]
        size = drawn_from_i.std(0)
        moved = size > 1e-9  # two that answer every prompt alike never differ
        if moved.sum() > 1:
            largest = np.quantile(np.abs(drawn_from_i[:, moved] / size[moved]).max(1), CONFIDENCE)
            level[i] = max(CONFIDENCE, 2 * NormalDist().cdf(largest) - 1)
    return Comparison(means, level)


@dataclass
class Contender:
    """A model among several; `start`: it is where the others began (SFT), and no setting of theirs."""

    name: str
    rate: float
    start: bool = False


def conclusion(models: list[Contender], does: str, comparison: Comparison | None) -> str:
    """In a sentence: which setting is best, and whether that is more than chance among so many.

    Args:
        does: what a rate says, as in `passes {} of 320 validation prompts`.
        comparison: of the models, in their order; None where outcomes are not known prompt by prompt.
    """
    settings = [i for i, model in enumerate(models) if not model.start]
    best = max(settings, key=lambda i: models[i].rate)
    start = max((i for i in range(len(models)) if models[i].start), key=lambda i: models[i].rate, default=None)
    parts = [lead(models, len(settings), best, start, does)]
    if comparison is None:
        parts.append("whether that is chance is not known")
    else:
        if start is not None:
            parts.append(of_gain(comparison, best, start, len(settings)))
        if len(settings) > 1 and (start is None or models[best].rate > models[start].rate):
            parts.append(of_others(comparison, best, settings))
    return f"{'; '.join(parts)}."


def lead(models: list[Contender], settings: int, best: int, start: int | None, does: str) -> str:
    """What came out, whatever it is worth."""
    first, did = models[best], does.format(f"{models[best].rate:.1%}")
    if start is not None and first.rate <= (sft := models[start]).rate:
        of = f"the best of {settings}, {first.name}," if settings > 1 else first.name
        did = does.format(f"{sft.rate:.1%}")
        return f"No setting is better than {sft.name}, which {did}; {of} has {first.rate:.1%}"
    beside = "" if start is None else f", {models[start].name} {models[start].rate:.1%}"
    if settings > 1:
        return f"Of {settings} settings, {first.name} is the best: it {did}{beside}"
    return f"{first.name} {did}{beside}"


def of_gain(comparison: Comparison, best: int, start: int, settings: int) -> str:
    gain, corrected = comparison.alone(start, best), comparison.between(start, best)
    more = "more" if corrected.low > 0 or corrected.high < 0 else "no more"
    if settings == 1:
        return f"the difference, {gain.points()}, is {more} than chance"
    among = f"{corrected.bounds()} when corrected for {settings} settings"
    return f"the difference, {gain.points()}, {among}, is {more} than chance among so many"


def of_others(comparison: Comparison, best: int, settings: list[int]) -> str:
    rivals, others = len(comparison.rivals(best, settings)), len(settings) - 1
    if rivals:
        return f"{f'{rivals} of the' if rivals < others else 'each of the'} other {others} may be as good"
    return "every other is worse by more than chance"
