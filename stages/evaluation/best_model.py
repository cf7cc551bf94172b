"""The best of several models, with intervals corrected for the number of models compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.claims import difference, highest
from stages.evaluation.estimate import Means
from stages.evaluation.intervals import Interval

Array = NDArray[np.float64]
DRAWS = 20_000  # of the errors of all models together
CONFIDENCE = 0.95


@dataclass
class Comparison:
    """All pairwise differences between models. `level[i]` is the confidence of each single interval against model i:
    at that level all intervals against model i hold together with probability `confidence`."""

    means: Means
    level: Array
    confidence: float

    def uncorrected(self, i: int, j: int) -> Interval:
        """The difference j − i with the uncorrected interval that an evaluation of the two models prints."""
        return self.means.difference(j, i, self.confidence)

    def corrected(self, i: int, j: int) -> Interval:
        """The difference j − i, corrected for the number of models compared with i."""
        return self.means.difference(j, i, float(self.level[i]))

    def rivals(self, best: int, among: list[int]) -> list[int]:
        """List the models besides `best` that no model in `among` beats significantly: each may truly be the best."""
        return [
            i
            for i in among
            if i != best and not any(difference(self.corrected(i, j)).is_better for j in among)
        ]


def compare_models(
    outcomes: Array,
    families: Sequence[str],
    drawn: bool = False,
    shares: bool = True,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Compare every model with every other on the same prompts; the arguments are those of `Means`. The highest of
    many rates is partly luck, so every interval is corrected. For each model i, the errors of all differences from i
    are drawn jointly, in units of their standard errors. The quantile of the largest one sets the level (Hothorn,
    Bretz and Westfall 2008, Biometrical Journal 50:3; with SFT as i this is White's reality check, 2000, Econometrica
    68:5). Models that answer alike have the same errors and widen no interval. The models that no other exceeds
    contain the best one with the same confidence (Hsu 1981, Annals of Statistics 9:5)."""
    means = Means(outcomes, families, drawn, shares)
    scales, directions = np.linalg.eigh(means.residuals.T @ means.residuals)
    normals = np.random.default_rng(0).standard_normal((DRAWS, len(scales)))
    errors = normals @ (directions * np.sqrt(np.maximum(scales, 0))).T
    level = np.full(len(scales), confidence)
    for i in range(len(scales)):
        # Models with equal outcomes on every prompt have no error to scale. The residuals tell which: the roots of
        # eigenvalues that should be 0 add errors of 1e-8 to what is drawn.
        differs = np.abs(means.residuals - means.residuals[:, [i]]).max(0) > 1e-9
        if differs.sum() > 1:
            drawn_from_i = (errors - errors[:, [i]])[:, differs]
            largest = np.quantile(np.abs(drawn_from_i / drawn_from_i.std(0)).max(1), confidence)
            level[i] = max(confidence, 2 * NormalDist().cdf(largest) - 1)
    return Comparison(means, level, confidence)


@dataclass
class Contender:
    """A model in the comparison; `is_sft`: the SFT model that the other models start from, not a setting."""

    name: str
    rate: float
    is_sft: bool = False


def conclusion(
    models: list[Contender], prompts: str, comparison: Comparison, note: str = ""
) -> str:
    """Say which setting wins, or that the prompts cannot tell settings apart, then the rates and the difference from
    SFT. `prompts`: their number and name, such as `320 validation prompts`. `comparison`: of `models` in their order.
    `note`: why nothing can be said, or ''."""
    everyone = [*range(len(models))]
    settings = [i for i in everyone if not models[i].is_sft]
    starts = [i for i in everyone if models[i].is_sft]
    first = max(everyone, key=lambda i: models[i].rate)
    rivals = comparison.rivals(first, everyone)
    best = max(settings, key=lambda i: models[i].rate)
    start = max(starts, key=lambda i: models[i].rate, default=None)
    if len(models) == 1:
        return f"{models[best].name} passes {models[best].rate:.1%} of {prompts}."
    alike = group_clause(models, [first, *rivals])
    claim = highest(models[first].rate, not rivals, first == best, prompts)
    lead = claim.says("best", model=models[first].name, alike=alike)
    if note:
        lead = f"{note.capitalize()} which of these models is best. {models[first].name} has the highest rate, {claim.figure}"
    parts = [f"{lead}{other_rate(models, first, best, start)}"]
    if start is not None:
        parts.append(gain_clause(comparison, best, start, len(settings), note))
    elif not rivals:
        second = max(set(settings) - {best}, key=lambda i: models[i].rate)
        lead_over_second = comparison.corrected(second, best).points()
        parts.append(f"that is {lead_over_second} over {models[second].name}, the next")
    return f"{'; '.join(parts)}."


def group_clause(models: list[Contender], members: list[int]) -> str:
    """Return the words for models that the prompts cannot tell apart: `these 4 settings and SFT`."""
    settings = [models[i].name for i in members if not models[i].is_sft]
    starts = [models[i].name for i in members if models[i].is_sft]
    number_of_settings = sum(not model.is_sft for model in models)
    words = [*settings, *starts]
    if len(settings) > 1:
        is_partial = len(settings) < number_of_settings
        counted = (
            f"{len(settings)} of the {number_of_settings}"
            if is_partial
            else f"these {len(settings)}"
        )
        words = [f"{counted} settings", *starts]
    return " and ".join(words)


def other_rate(models: list[Contender], first: int, best: int, start: int | None) -> str:
    """Return the rate beside the highest one: SFT's, or the best setting's if SFT has the highest."""
    if start is None:
        return ""
    other = start if first == best else best
    return f", {models[other].name} {models[other].rate:.1%}"


def gain_clause(
    comparison: Comparison, best: int, start: int, settings: int, note: str = ""
) -> str:
    """Return the difference of the best setting from SFT, and whether it is more than chance."""
    gain, corrected = comparison.uncorrected(start, best), comparison.corrected(start, best)
    clause = f"the difference, {gain.points()},"
    if settings > 1:
        clause += f" {corrected.bounds()} when corrected for {settings} settings,"
    if note:
        return f"{clause} says nothing"
    return f"{clause} is {difference(corrected).says('chance')}"
