"""The best of several models, with intervals corrected for the number of models compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.claims import difference
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


def conclusion(models: list[Contender], predicate: str, comparison: Comparison) -> str:
    """Say in one sentence which setting is best, and whether the difference is more than chance. `predicate`: the
    clause that a rate is filled into, as in `passes {} of 320 validation prompts`. `comparison`: of `models` in their
    order."""
    settings = [i for i, model in enumerate(models) if not model.is_sft]
    starts = [i for i, model in enumerate(models) if model.is_sft]
    best = max(settings, key=lambda i: models[i].rate)
    start = max(starts, key=lambda i: models[i].rate, default=None)
    parts = [lead_clause(models, len(settings), best, start, predicate)]
    if start is not None:
        parts.append(gain_clause(comparison, best, start, len(settings)))
    is_better = start is None or models[best].rate > models[start].rate
    if is_better and len(settings) > 1:
        parts.append(rivals_clause(comparison, best, settings))
    return f"{'; '.join(parts)}."


def lead_clause(
    models: list[Contender], settings: int, best: int, start: int | None, predicate: str
) -> str:
    """Return the clause with the rates alone, without a statement on significance."""
    first, filled = models[best], predicate.format(f"{models[best].rate:.1%}")
    if start is not None and first.rate <= (sft := models[start]).rate:
        best_title = f"the best of {settings}, {first.name}," if settings > 1 else first.name
        filled = predicate.format(f"{sft.rate:.1%}")
        return f"No setting is better than {sft.name}, which {filled}; {best_title} has {first.rate:.1%}"
    sft_rate = "" if start is None else f", {models[start].name} {models[start].rate:.1%}"
    if settings > 1:
        return f"Of {settings} settings, {first.name} is the best: it {filled}{sft_rate}"
    return f"{first.name} {filled}{sft_rate}"


def gain_clause(comparison: Comparison, best: int, start: int, settings: int) -> str:
    gain, corrected = comparison.uncorrected(start, best), comparison.corrected(start, best)
    certainty = difference(corrected).says("chance")
    bounds = (
        f" {corrected.bounds()} when corrected for {settings} settings," if settings > 1 else ""
    )
    return f"the difference, {gain.points()},{bounds} is {certainty}"


def rivals_clause(comparison: Comparison, best: int, settings: list[int]) -> str:
    rivals, other_count = len(comparison.rivals(best, settings)), len(settings) - 1
    if rivals:
        return f"{f'{rivals} of the' if rivals < other_count else 'each of the'} other {other_count} may be as good"
    return "every other is worse by more than chance"
