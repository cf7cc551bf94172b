"""Scores that are known up to a constant of their prompt, as a reward model's are (Bradley & Terry 1952).

Only differences between completions of one prompt mean something. An absolute score, such as the share of checks
passed, has a lowest value, 0; a relative one has none."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

DIGITS = 9  # after the point; the sum of a score and a constant is not exact
# a list of each process that scores at once → the items of all of them
Gather = Callable[[list[Any]], list[Any]]


def have_difference(scores: Sequence[float]) -> bool:
    """Return whether some scores differ by more than rounding explains. No scores do not differ."""
    return len(scores) > 0 and round(max(scores) - min(scores), DIGITS) > 0


def floors_by_prompt(
    scores_by_prompt: Mapping[str, Sequence[float]], relative: bool, gather: Gather = list
) -> dict[str, float]:
    """Return by prompt the score of a completion that has none of its own, because it is truncated or vetoed.

    Of absolute scores it is the lowest of the prompt's, and at most 0. Of relative ones it is the lowest of the
    prompt's less their deviation within prompts, pooled over all of them: a constant that is added to a prompt's scores
    is added to its floor too. A prompt without any relative score is absent. `gather`: of processes, each with its own
    prompts."""
    if not relative:
        return {prompt: min([0.0, *scores]) for prompt, scores in scores_by_prompt.items()}
    deviation = pooled_deviation(scores_by_prompt.values(), gather)
    return {
        prompt: min(scores) - deviation for prompt, scores in scores_by_prompt.items() if scores
    }


def pooled_deviation(groups: Iterable[Sequence[float]], gather: Gather) -> float:
    """Return the standard deviation of scores within groups; 1 if all scores of each group are equal."""
    squares, freedom = 0.0, 0
    for scores in filter(None, groups):
        mean = fmean(scores)
        squares += sum(round(score - mean, DIGITS) ** 2 for score in scores)
        freedom += len(scores) - 1
    parts: list[tuple[float, int]] = gather([(squares, freedom)])
    total_squares = sum(part for part, _ in parts)
    total_freedom = sum(part for _, part in parts)
    return (total_squares / total_freedom) ** 0.5 if total_squares else 1.0


def quantiles_over_prompts(
    scores: Mapping[str, float], prompt_of: Mapping[str, str], gather: Gather = list
) -> dict[str, float]:
    """Return by candidate the quantile of its score less its prompt's mean, among those of all candidates: between 0
    and 1, both excluded. A constant that is added to a prompt's scores changes none of them. `gather`: of processes,
    each with its own prompts."""
    scores_by_prompt = defaultdict[str, list[float]](list)
    for candidate, score in scores.items():
        scores_by_prompt[prompt_of[candidate]].append(score)
    means = {prompt: fmean(each) for prompt, each in scores_by_prompt.items()}
    differences = {
        candidate: round(score - means[prompt_of[candidate]], DIGITS)
        for candidate, score in scores.items()
    }
    ordered = sorted(gather([*differences.values()]))
    return {candidate: quantile(each, ordered) for candidate, each in differences.items()}


def quantile(score: float, ordered: Sequence[float]) -> float:
    """Return the share of scores below `score`, with half of the equal ones: between 0 and 1, both excluded."""
    return (bisect_left(ordered, score) + bisect_right(ordered, score)) / (2 * len(ordered))
