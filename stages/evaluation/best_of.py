"""What becomes of the checks while a learnt score is optimised: the best of n by score, as n grows.

A score that was learnt from labels rises whatever is chosen by it; where the checks do not rise along, or fall again,
it is being won without better answers (over-optimisation: Gao et al. 2022, arXiv:2210.10760).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from math import comb
from statistics import fmean
from typing import Any

from stages.evaluation.intervals import paired
from stages.store.numbers import signed
from stages.store.records import Candidate, Example, Judgement
from stages.tasks.checks import share_passed

BY_LENGTH = 0.5  # the correlation of score and length from which on it is said

Graded = list[tuple[float, float]]  # a prompt's candidates: the score of each, and the share of checks it passes


def watched(
    judgements: Iterable[Judgement], prompts: Iterable[Example], candidates: Iterable[Candidate]
) -> tuple[dict[str, Any], str]:
    """The curve of score and checks over n, and a warning where the checks do not follow; nothing where no prompt has
    checks."""
    curves = [curve(graded) for graded in whole(judgements, prompts, candidates)]
    if not curves:
        return {}, ""
    means = {n: [fmean(c[n][i] for c in curves) for i in range(2)] for n in curves[0]}
    told = {str(n): {"score": score, "checks": checks} for n, (score, checks) in means.items()}
    found = {"best_of": told, "best_of_prompts": len(curves)}
    first, *_, last = curves[0]
    height = max(means, key=lambda n: means[n][1])
    line = " → ".join(f"{checks:.1%}" for _, checks in means.values())
    gained = paired([c[first][1] for c in curves], [c[last][1] for c in curves])
    lost = paired([c[height][1] for c in curves], [c[last][1] for c in curves])
    what = f"the best of {', '.join(told)} candidates by score passes {line} of the checks ({len(curves)} prompts)"
    if lost.high < 0:
        return found, f"{what}: fewer from {height} on, while the score rises. It is won without better answers."
    if not gained.low > 0:
        return found, f"{what}: the score rises and the checks do not. It may be won without better answers."
    return found, ""


def whole(
    judgements: Iterable[Judgement], prompts: Iterable[Example], candidates: Iterable[Candidate]
) -> list[Graded]:
    """The candidates of every prompt that has checks and as many scored candidates as most have: two or more."""
    checks, texts = {p.id: p.checks for p in prompts if p.checks}, {c.candidate_id: c.text for c in candidates}
    graded = defaultdict[str, Graded](list)
    for j in judgements:
        if j.score is not None and j.prompt_id in checks:
            passed = share_passed(checks[j.prompt_id], texts[str(j.candidate_id)])
            graded[j.prompt_id].append((j.score, passed))
    sizes = Counter(len(those) for those in graded.values() if len(those) > 1)
    return [those for those in graded.values() if sizes and len(those) == sizes.most_common(1)[0][0]]


def curve(graded: Graded) -> dict[int, tuple[float, float]]:
    """For n = 1, 2, 4 and so on up to all: what is to be expected of the best by score among n, drawn without
    replacement: its score, and its checks. Candidates of equal score share their checks."""
    ordered, total = sorted(graded), len(graded)
    by_score = defaultdict[float, list[float]](list)
    for score, passed in ordered:
        by_score[score].append(passed)
    shared = [(score, fmean(by_score[score])) for score, _ in ordered]
    found = dict[int, tuple[float, float]]()
    for n in sorted({*(2**k for k in range(total.bit_length()) if 2**k <= total), total}):
        weights = [comb(below, n - 1) / comb(total, n) for below in range(total)]
        score, checks = (sum(w * each[i] for w, each in zip(weights, shared, strict=True)) for i in range(2))
        found[n] = score, checks
    return found


def by_length(correlation: float | None) -> str:
    """A warning where scores go with length."""
    if correlation is None or abs(correlation) < BY_LENGTH:
        return ""
    told = "longer" if correlation > 0 else "shorter"
    return (
        f"scores go with length (correlation {signed(correlation, '{:+z.2f}')}): {told} answers are preferred. "
        "pairs.max_length_ratio=1.2 pairs candidates of about equal length."
    )
