"""Learnt scores: accuracy and calibration of a reward model on pairs whose better answer is known, and best of n.

Selecting by a learnt score always raises that score. If the checks do not rise with it, or fall again, the score is
over-optimised (Gao et al. 2022, arXiv:2210.10760)."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import comb
from statistics import fmean
from typing import Any

import numpy as np

from stages.evaluation import claims
from stages.evaluation.estimate import Share, difference, mean_of_shares, share
from stages.evaluation.intervals import Interval
from stages.store.numbers import signed
from stages.store.records import Candidate, Example, Judgement
from stages.tasks.checks import share_passed

BINS = 5  # bins of confidence, which ranges from one half to 1
BY_LENGTH = 0.5  # the smallest correlation of score and length that gives a warning

# a prompt's candidates: the score of each, and the share of checks it passes
Graded = list[tuple[float, float]]


@dataclass(frozen=True)
class Scored:
    """A pair with its prompt's id and source, and the rewards and token counts of both completions."""

    id: str
    prompt: str
    source: str
    chosen: float
    rejected: float
    chosen_tokens: int
    rejected_tokens: int

    @property
    def right(self) -> bool:
        return self.chosen > self.rejected


def figures(pairs: Sequence[Scored]) -> dict[str, Any]:
    """Return accuracy (of all pairs, by source, and with lengths matched), calibration and length bias."""
    sources = sorted({p.source for p in pairs})
    results: dict[str, Any] = {
        "accuracy": asdict(accuracy(pairs)),
        "by_source": {
            source: asdict(accuracy([p for p in pairs if p.source == source])) for source in sources
        },
        "longer_chosen": longer_chosen(pairs),
        "calibration_error": calibration_error(pairs),
        "brier": brier(pairs),
        "length_correlation": length_correlation(pairs),
    }
    if matched := length_matched(pairs):
        results["length_matched"] = asdict(matched)
    return results


def accuracy(pairs: Sequence[Scored]) -> Interval:
    """The share of pairs that the model orders rightly. Pairs of one prompt count as one draw."""
    return share_right(pairs).interval()


def share_right(pairs: Sequence[Scored]) -> Share:
    return share([p.right for p in pairs], [p.prompt for p in pairs])


def length_matched(pairs: Sequence[Scored]) -> Interval | None:
    """The mean of two accuracies: on pairs with a longer chosen completion, and on pairs with a shorter one. A model
    that goes by length alone gets one half. None if either kind of pair is missing."""
    longer = [p for p in pairs if p.chosen_tokens > p.rejected_tokens]
    shorter = [p for p in pairs if p.chosen_tokens < p.rejected_tokens]
    if not (longer and shorter):
        return None
    return mean_of_shares([share_right(longer), share_right(shorter)]).interval()


def longer_chosen(pairs: Sequence[Scored]) -> float | None:
    """The share of pairs of unequal length with a longer chosen completion: the accuracy of preferring the longer."""
    unequal = [
        p.chosen_tokens > p.rejected_tokens for p in pairs if p.chosen_tokens != p.rejected_tokens
    ]
    return float(np.mean(unequal)) if unequal else None


def confidences(pairs: Sequence[Scored]) -> tuple[Any, Any]:
    """Return the model's confidence in its preference, from one half to 1, and whether the preference is right."""
    gaps = np.array([p.chosen - p.rejected for p in pairs])
    return 1 / (1 + np.exp(-np.abs(gaps))), gaps > 0


def calibration_error(pairs: Sequence[Scored]) -> float:
    """Mean |confidence − accuracy| over bins of confidence, weighted by pairs (Guo et al. 2017, arXiv:1706.04599)."""
    confidence, right = confidences(pairs)
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = [
        abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean()
        for b in np.unique(bins)
    ]
    return float(sum(gaps))


def brier(pairs: Sequence[Scored]) -> float:
    """Mean squared error of the probability that chosen is better (Brier 1950); random guessing gives 0.25."""
    confidence, right = confidences(pairs)
    return float(np.mean(np.where(right, 1 - confidence, confidence) ** 2))


def length_correlation(pairs: Sequence[Scored]) -> float | None:
    """The correlation of reward difference and length difference within pairs; None without a spread in either."""
    gaps = np.array([[p.chosen - p.rejected, p.chosen_tokens - p.rejected_tokens] for p in pairs])
    # spread around 0, because the order within a pair is arbitrary
    spread = np.sqrt((gaps**2).mean(0))
    return float((gaps[:, 0] * gaps[:, 1]).mean() / spread.prod()) if spread.all() else None


def best_of_n(
    judgements: Iterable[Judgement], prompts: Iterable[Example], candidates: Iterable[Candidate]
) -> tuple[dict[str, Any], str]:
    """Return the mean score and checks for each n, and a warning if checks do not rise with the score."""
    if not (
        curves := [curve(graded) for graded in complete_prompts(judgements, prompts, candidates)]
    ):
        return {}, ""
    means = {n: [fmean(c[n][i] for c in curves) for i in range(2)] for n in curves[0]}
    points_by_n = {
        str(n): {"score": score, "checks": checks} for n, (score, checks) in means.items()
    }
    figures = {"best_of": points_by_n, "best_of_prompts": len(curves)}
    first, *_, last = curves[0]
    peak = max(means, key=lambda n: means[n][1])
    shares = " → ".join(f"{checks:.1%}" for _, checks in means.values())
    subject = (
        f"the best of {', '.join(points_by_n)} candidates by score passes {shares} of the checks"
    )
    late = difference([c[peak][1] for c in curves], [c[last][1] for c in curves])
    if claims.difference(late).is_worse:
        return (
            figures,
            f"{subject}: fewer from {peak} on, although the score rises, so higher scores are not better.",
        )
    whole = difference([c[first][1] for c in curves], [c[last][1] for c in curves])
    if not claims.difference(whole).is_better:
        return (
            figures,
            f"{subject}: the score rises and the checks do not, so higher scores may not be better.",
        )
    return figures, ""


def complete_prompts(
    judgements: Iterable[Judgement], prompts: Iterable[Example], candidates: Iterable[Candidate]
) -> list[Graded]:
    """Grade the candidates of each prompt that has checks and the most common number (at least 2) of candidates."""
    checks = {p.id: p.checks for p in prompts if p.checks}
    texts = {c.candidate_id: c.answer for c in candidates}
    graded = defaultdict[str, Graded](list)
    for j in judgements:
        if j.score is not None and j.prompt_id in checks:
            graded[j.prompt_id].append(
                (j.score, share_passed(checks[j.prompt_id], texts[str(j.candidate_id)]))
            )
    sizes = Counter(len(rows) for rows in graded.values() if len(rows) > 1)
    return [rows for rows in graded.values() if sizes and len(rows) == sizes.most_common(1)[0][0]]


def curve(graded: Graded) -> dict[int, tuple[float, float]]:
    """Return for n = 1, 2, 4 … up to all: the expected score and checks of the highest-scored of n candidates. The n
    candidates are drawn without replacement; candidates with equal scores share the mean of their checks."""
    ordered, total = sorted(graded), len(graded)
    by_score = defaultdict[float, list[float]](list)
    for score, passed in ordered:
        by_score[score].append(passed)
    shared = [(score, fmean(by_score[score])) for score, _ in ordered]
    points = dict[int, tuple[float, float]]()
    for n in sorted({*(2**k for k in range(total.bit_length()) if 2**k <= total), total}):
        weights = [comb(below, n - 1) / comb(total, n) for below in range(total)]
        score, checks = (
            sum(w * each[i] for w, each in zip(weights, shared, strict=True)) for i in range(2)
        )
        points[n] = score, checks
    return points


def length_warning(correlation: float | None) -> str:
    """Return a warning if scores correlate with length, else ''."""
    if correlation is None or abs(correlation) < BY_LENGTH:
        return ""
    preferred = "longer" if correlation > 0 else "shorter"
    bias = f"scores correlate with length ({signed(correlation, '{:+z.2f}')}): {preferred} answers are preferred"
    return f"{bias}. pairs.max_length_ratio=1.2 pairs candidates of about equal length."
