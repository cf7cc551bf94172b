"""Which of several models is best, and whether that is more than chance among so many."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.bootstrap import Interval, expanded, resampled_means

SAMPLES, AT_ONCE = 2000, 100  # draws of the bootstrap; of so many the counts are in memory together
CONFIDENCE = 0.95


@dataclass
class Comparison:
    """Every model against every other. `difference[i, j]` is by how much j is above i, and `margin[i, j]` how far that
    may be off; all margins against one i hold together, with the probability CONFIDENCE. No difference of what is
    compared is larger than `widest`: 1 for shares."""

    difference: NDArray[np.float64]
    margin: NDArray[np.float64]
    widest: float = 1.0

    def between(self, i: int, j: int) -> Interval:
        """How far j is above i, corrected for all that are held against i."""
        mean, margin = float(self.difference[i, j]), float(self.margin[i, j])
        return Interval(mean, max(-self.widest, mean - margin), min(self.widest, mean + margin))

    def better(self, j: int, i: int) -> bool:
        """Whether j is above i by more than chance among so many."""
        return self.between(i, j).low > 0

    def rivals(self, best: int, among: list[int]) -> list[int]:
        """Those, besides the best, that nothing among them is better than: each of them may be the best in truth."""
        return [i for i in among if i != best and not any(self.better(j, i) for j in among)]


def compared(outcomes: NDArray[np.float64], families: list[str], widest: float = 1.0) -> Comparison:
    """Hold every model against every other on the same prompts.

    The highest of many rates is high by chance as well, so no difference is judged by its own interval. For every
    model i the bootstrap over families and prompts gives the distribution of the largest error of all differences from
    i, each in units of its own standard error; what exceeds its quantile is more than chance among so many. Models
    that answer alike cost nothing, as their errors are drawn together. With SFT as i this is the reality check of
    White (2000, Econometrica 68:5) with the standardised maximum of Romano and Wolf (2005, Econometrica 73:4); the
    models that no other exceeds hold the best one with the same confidence (Hsu 1981, Annals of Statistics 9:5).

    Args:
        outcomes: (prompts, models).
        families: the family of each prompt; one and the same where prompts have none.
        widest: how far apart two outcomes can be.
    """
    rng, count = np.random.default_rng(0), outcomes.shape[1]
    draws = np.concatenate([resampled_means(outcomes, families, AT_ONCE, rng) for _ in range(SAMPLES // AT_ONCE)])
    means = outcomes.mean(0)
    difference, margin = means[None] - means[:, None], np.zeros((count, count))
    widening = expanded((1 + CONFIDENCE) / 2, families) / NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    for i in range(count):
        drawn = draws - draws[:, [i]]
        error = drawn.std(0)
        moved = error > 1e-12  # two that answer every prompt alike never differ
        if moved.any():
            largest = (np.abs(drawn - difference[i])[:, moved] / error[moved]).max(1)
            margin[i] = widening * np.quantile(largest, CONFIDENCE) * error
    return Comparison(difference, margin, widest)


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
    gain = comparison.between(start, best)
    more = "more" if gain.low > 0 or gain.high < 0 else "no more"
    if settings == 1:
        return f"the difference, {gain.points()}, is {more} than chance"
    return f"the difference, {gain.points()}, is {more} than chance among so many"


def of_others(comparison: Comparison, best: int, settings: list[int]) -> str:
    rivals, others = len(comparison.rivals(best, settings)), len(settings) - 1
    if rivals:
        return f"{f'{rivals} of the' if rivals < others else 'each of the'} other {others} may be as good"
    return "every other is worse by more than chance"
