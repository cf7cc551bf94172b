"""Win rates of a policy that a judge compared with another model, prompt by prompt.

A tie is half a win. *Is it length?* The length-controlled rate is the win rate if both models were equally often the
longer one. *Is it the judge?* People's verdicts on randomly drawn comparisons correct the judge. *Is it chance?* Every
rate is one half and half of a paired difference: the share of wins less that of losses."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.claims import HALF, judged_word
from stages.evaluation.estimate import Difference, Means, diluted
from stages.evaluation.intervals import Interval
from stages.evaluation.results import MatchedRate, PeopleRate, WinRates

Array = NDArray[np.float64]
BINS = 5  # bins of the length difference, for matching
RARER = 20  # fewest prompts of the rarer sign of that difference for a length-controlled rate
# fewest verdicts of people for a rate by people alone, and for one by people and judge
ALONE, TOGETHER = 10, 50


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of the policy with another model, one per prompt; every field has the shape (prompts,).

    Args:
        won: 1 if the judge prefers the policy, 0 if the other model, 0.5 for a tie or a choice that changed with the
            order; NaN if the judge's verdict is missing.
        longer_by: tokens of the policy's answer minus those of the other model's.
        people: people's verdict, coded as `won`; NaN where nobody was asked.
        shown_first: 1 if the judge saw the policy's answer first, else 0; 0.5 if it saw both orders.
        alike: True if both answers are the same text: a tie that neither the judge nor people are asked about.
        judge: as `won`, but with the judge's own verdict where people's replaced it."""

    won: Array
    longer_by: NDArray[Any]
    people: Array
    shown_first: NDArray[Any]
    alike: NDArray[np.bool_]
    judge: Array


def comparison_results(c: Comparisons, confidence: float, max_longer: float) -> WinRates:
    """Return win rates, null judges' win rates and the verdict. `max_longer`: the highest share of unequal lengths in
    which one model may be longer, for a length-controlled rate."""
    judged = ~np.isnan(c.won)
    won, longer_by = c.won[judged], c.longer_by[judged]
    rate = win_rate(won, confidence)
    matched = matched_rate(won, longer_by, confidence, max_longer)
    people = people_rate(c, confidence)
    deciding = people.win_rate if people and people.decides else rate
    nulls = {
        "longer wins": HALF + np.sign(longer_by) / 2,
        "first wins": c.shown_first[judged].astype(float),
    }
    return WinRates(
        win_rate=rate,
        longer=float((longer_by > 0).mean()) if len(won) else 0.0,
        matched=matched if isinstance(matched, MatchedRate) else None,
        unmatched=matched if isinstance(matched, str) else "",
        people=people,
        nulls={name: win_rate(of_null, confidence) for name, of_null in nulls.items()},
        detectable=detectable(
            len(won), float((won == HALF).mean()) if len(won) else 1.0, confidence
        ),
        effect=str(judged_word(len(won), deciding, matched)),
    )


def win_rate(won: Array, confidence: float = 0.95) -> Interval:
    """The mean of outcomes with its interval; without outcomes, the interval is 0 to 1."""
    return rate_of(lead(won, confidence)) if len(won) else Interval(HALF, 0.0, 1.0)


def lead(won: Array, confidence: float) -> Interval:
    """Return the share of wins less that of losses, with its interval."""
    means = Means(np.stack([won, 1 - won], 1), [""] * len(won))
    return means.difference(0, 1, confidence)


def rate_of(lead: Interval) -> Interval:
    """Return the win rate with this lead."""
    return Interval(HALF + lead.mean / 2, HALF + lead.low / 2, HALF + lead.high / 2)


def matched_rate(
    won: Array, longer_by: NDArray[Any], confidence: float, max_longer: float
) -> MatchedRate | str:
    """Return the win rate as if both models were equally often the longer one, or the reason why there is none.
    Prompts are matched within bins of |length difference|, each with equally many of the rarer sign. A bin's rate is
    the mean of two rates: with the policy's answer longer, and with it shorter. Bins are weighted by the inverse of
    that mean's variance. Prompts with equal lengths are one more bin with the same weighting. So identical answers
    pull this rate towards one half as much as the plain rate, and the two stay comparable."""
    longer, shorter, equal = longer_by > 0, longer_by < 0, longer_by == 0
    if equal.all():
        return MatchedRate(win_rate(won, confidence), 1.0)
    most = longer.sum() > shorter.sum()
    is_rarer, more, less = (shorter, "longer", "shorter") if most else (longer, "shorter", "longer")
    count, differ = int(is_rarer.sum()), len(won) - int(equal.sum())
    if differ - count > max_longer * differ + 1e-9:
        share = f"{1 - count / differ:.1%} of the prompts whose lengths differ"
        return (
            f"the policy's answer is {more} on {share}, and at most {max_longer:.0%} can be matched"
        )
    if count < RARER:
        return f"the policy's answer is {less} on only {count} prompts: a length-controlled rate needs {RARER}"
    distance = np.abs(longer_by)
    bin_of = np.digitize(
        distance, np.quantile(distance[is_rarer], np.linspace(0, 1, BINS + 1)[1:-1])
    )
    bin_of[equal | (distance > distance[is_rarer].max())] = BINS
    bins = [[won[(bin_of == b) & sign] for sign in (longer, shorter)] for b in range(BINS)]
    if not (bins := [cells for cells in bins if min(map(len, cells)) > 1]):
        return (
            "no size of length difference occurs in both directions (policy longer, policy shorter)"
        )
    bins += [[won[equal]]] if equal.sum() > 1 else []
    effective = np.array([len(cells) ** 2 / sum(1 / len(cell) for cell in cells) for cells in bins])
    won_in, lost_in = (
        np.array([np.mean([(cell == outcome).mean() for cell in cells]) for cells in bins])
        for outcome in (1.0, 0.0)
    )
    variances = [sum(variance_of_mean(cell) for cell in cells) / len(cells) ** 2 for cells in bins]
    prompts = float(effective.sum())
    weights = effective / prompts
    matched = Difference(
        mean=float(weights @ (won_in - lost_in)),
        error=2 * math.sqrt((weights**2 * variances).sum()),
        freedom=sum(len(cell) - 1 for cells in bins for cell in cells),
        rows=prompts,
        gained=float(effective @ won_in),
        lost=float(effective @ lost_in),
    )
    return MatchedRate(rate_of(matched.interval(confidence)), prompts / len(won))


def variance_of_mean(outcomes: Array) -> float:
    """Return the variance of the outcomes' mean, with a floor because n equal outcomes could have been unequal."""
    return max(float(outcomes.var(ddof=1)), 0.25 / len(outcomes)) / len(outcomes)


def people_rate(c: Comparisons, confidence: float) -> PeopleRate | None:
    """Return the win rate by people, who saw a random part of the comparisons that are not alike; None if too few.
    From 50 verdicts on it `decides`: the judge stands in for people on the other prompts, and they correct its mean.
    The judge's weight minimises the variance (Angelopoulos et al. 2023, arXiv:2311.01453). Comparisons without a
    verdict of the judge are left out: people see none of them. Alike answers count as ties."""
    distinct = ~c.alike
    people, judge = (each[distinct & ~np.isnan(c.judge)] for each in (c.people, c.judge))
    answered = ~np.isnan(people)
    words, judge_on_words, judge_on_rest = people[answered], judge[answered], judge[~answered]
    n, weight = len(words), 0.0
    if n < ALONE:
        return None
    if n >= TOGETHER and len(judge_on_rest) > 1 and (spread := judge.var(ddof=1)):
        best = np.cov(words, judge_on_words)[0, 1] / (spread * (1 + n / len(judge_on_rest)))
        weight = float(np.clip(best, 0, 1))
    by_people = lead(words, confidence)
    if weight:
        by_people = corrected_lead(words, judge_on_words, judge_on_rest, weight).interval(
            confidence
        )
    # Alike answers are ties, and their share has a sampling error too.
    rate = rate_of(diluted(by_people, len(distinct), float(distinct.mean()), confidence))
    by = "people and judge" if weight else "people alone"
    return PeopleRate(n, n >= TOGETHER, rate, by)


def corrected_lead(
    words: Array, judge_on_words: Array, judge_on_rest: Array, weight: float
) -> Difference:
    """Return people's lead as it is if the judge stands in for them on the rest with this weight."""
    n, corrected = len(words), words - weight * judge_on_words
    mean = float(corrected.mean() + weight * judge_on_rest.mean())
    variance = corrected.var(ddof=2) / n + weight**2 * judge_on_rest.var(ddof=1) / len(
        judge_on_rest
    )
    difference = min(1.0, max(-1.0, 2 * mean - 1))
    decided = max(float((words != HALF).mean()), abs(difference))
    return Difference(
        mean=difference,
        error=2 * math.sqrt(variance),
        freedom=n - 2,
        rows=n,
        gained=n * (decided + difference) / 2,
        lost=n * (decided - difference) / 2,
    )


def detectable(
    prompts: int, ties: float = 0.3, confidence: float = 0.95, power: float = 0.8
) -> float:
    """Return the smallest difference of a win rate from one half that this many prompts detect with this power."""
    z = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(power)
    decided = max(1 - ties, z**2 / max(1, prompts))  # twice the difference, at least
    return min(HALF, z / 2 * math.sqrt(decided / max(1, prompts)))
