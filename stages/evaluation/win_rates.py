"""Win rates of a policy that a judge compared with another model, prompt by prompt.

A tie is half a win. *Is it length?* The length-controlled rate says what the judge prefers where both models are as
often the longer one. *Is it the judge?* People's words on some of the comparisons, drawn at random, correct the judge.
*Is it chance?* Every rate has a score interval (Wilson 1927, JASA 22).
"""

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.agreement import z_of
from stages.evaluation.intervals import Interval, score_bounds, student_quantile

Array = NDArray[np.float64]
EVEN = 0.5
BINS = 5  # of the difference of lengths, for matching
RARER = 20  # prompts of the rarer sign of that difference, below which there is no length-controlled rate
JUDGED = 20  # prompts, below which there is no verdict
ALONE, TOGETHER = 10, 50  # people's words that give a rate; that the judge may narrow the interval of


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of the policy with another model, one per prompt; every field has the shape (prompts,).

    Args:
        won: 1 where the judge prefers the policy, 0 where the other model, 0.5 at a tie or where the order of showing
            changed the judge's choice; NaN where the judge's word is missing.
        longer_by: tokens of the policy's answer less those of the other model's.
        people: people's word in place of the judge's, as in `won`; NaN where nobody was asked.
        shown_first: whether the judge saw the policy's answer first; 0.5 where it saw both orders.
        alike: whether both answers are the same text: a tie, which neither the judge nor people are asked about.
    """

    won: Array
    longer_by: NDArray[Any]
    people: Array
    shown_first: NDArray[Any]
    alike: NDArray[np.bool_]


@dataclass(frozen=True)
class MatchedRate:
    """The length-controlled win rate, and what share of the prompts would give a plain rate as precise."""

    win_rate: Interval
    used: float


def compared(c: Comparisons, confidence: float, max_longer: float) -> dict[str, Any]:
    """Return win rates, null judges' win rates and the verdict as `results.json` has them.

    `max_longer`: how often one model may be the longer one where lengths differ, for a length-controlled rate.
    """
    judged = ~np.isnan(c.won)
    won, longer_by = c.won[judged], c.longer_by[judged]
    rate = win_rate(won, confidence)
    matched = matched_rate(won, longer_by, confidence, max_longer)
    people = people_rate(c, confidence)
    nulls = {"longer wins": EVEN + np.sign(longer_by) / 2, "first wins": c.shown_first[judged].astype(float)}
    return {
        "win_rate": asdict(rate),
        "longer": float((longer_by > 0).mean()) if len(won) else 0.0,
        "matched": asdict(matched) if isinstance(matched, MatchedRate) else None,
        "unmatched": matched if isinstance(matched, str) else "",
        "people": people,
        "nulls": {name: asdict(win_rate(of_null, confidence)) for name, of_null in nulls.items()},
        "detectable": detectable(len(won), float((won == EVEN).mean()) if len(won) else 1.0, confidence),
        "effect": effect_of(len(won), Interval(**people["win_rate"]) if people else rate, matched),
    }


def effect_of(judged: int, rate: Interval, matched: MatchedRate | str) -> str:
    """Return the verdict: length is ruled out where both intervals are clear of one half, on the same side."""
    if judged < JUDGED:
        return "too few to say"
    if not (side := side_of(rate)):
        return "no measurable difference"
    if isinstance(matched, MatchedRate) and side_of(matched.win_rate) == side:
        return "better" if side > 0 else "worse"
    return "preferred, perhaps for length" if side > 0 else "rejected, perhaps for length"


def side_of(rate: Interval) -> int:
    """Return 1 for an interval above one half, -1 for one below, 0 for one that has it inside."""
    return int(rate.low > EVEN) - int(rate.high < EVEN)


def win_rate(won: Array, confidence: float = 0.95) -> Interval:
    """The mean of outcomes with its score interval; of none, everything is possible."""
    n = len(won)
    error = float(won.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return interval(float(won.mean()), error, n - 1, n, confidence) if n else Interval(EVEN, 0.0, 1.0)


def interval(mean: float, error: float, freedom: float, n: float, confidence: float) -> Interval:
    """The score interval of a rate with this standard error; without one, the interval of n independent outcomes.

    Wins and losses that n prompts happened to miss stay possible, up to half the score bound of 0 in n.
    """
    mean, t = min(1.0, max(0.0, mean)), student_quantile((1 + confidence) / 2, freedom)
    alone = mean * (1 - mean)
    unseen = score_bounds(0.0, t * t / n)[1] / 2
    only_ties = mean == EVEN and not error
    low, high = score_bounds(mean, 0 if only_ties else t * t * (error**2 / alone if alone and error else 1 / n))
    return Interval(mean, max(0.0, min(low, mean - unseen)), min(1.0, max(high, mean + unseen)))


def matched_rate(won: Array, longer_by: NDArray[Any], confidence: float, max_longer: float) -> MatchedRate | str:
    """Return the win rate as if both models were as often the longer one, or why there is none.

    Prompts are matched within bins of |difference of lengths|, which hold equally many of the rarer sign. A bin's rate
    is the mean of the rate where the policy's answer is longer and of that where it is shorter, and its weight goes by
    the inverse of that mean's variance. Prompts with equal lengths are one more bin, with a weight by the same rule:
    so identical answers pull this rate towards one half as they pull the plain one, and the two stay comparable.
    """
    longer, shorter, equal = longer_by > 0, longer_by < 0, longer_by == 0
    if equal.all():
        return MatchedRate(win_rate(won, confidence), 1.0)
    most = longer.sum() > shorter.sum()
    rarer, more, less = (shorter, "longer", "shorter") if most else (longer, "shorter", "longer")
    count, differ = int(rarer.sum()), len(won) - int(equal.sum())
    if differ - count > max_longer * differ + 1e-9:
        share = f"{1 - count / differ:.1%} of the prompts whose lengths differ"
        return f"the policy's answer is {more} on {share}: more than {max_longer:.0%} cannot be matched"
    if count < RARER:
        return f"the policy's answer is {less} on only {count} prompts: a length-controlled rate takes {RARER}"
    distance = np.abs(longer_by)
    bin_of = np.digitize(distance, np.quantile(distance[rarer], np.linspace(0, 1, BINS + 1)[1:-1]))
    bin_of[equal | (distance > distance[rarer].max())] = BINS
    bins = [[won[(bin_of == b) & sign] for sign in (longer, shorter)] for b in range(BINS)]
    bins = [cells for cells in bins if min(map(len, cells)) > 1]
    if not bins:
        return "no size of length difference occurs in both directions"
    bins += [[won[equal]]] if equal.sum() > 1 else []
    worth = np.array([len(cells) ** 2 / sum(1 / len(cell) for cell in cells) for cells in bins])
    means = np.array([np.mean([cell.mean() for cell in cells]) for cells in bins])
    variances = [sum(variance_of_mean(cell) for cell in cells) / len(cells) ** 2 for cells in bins]
    weights, freedom = worth / worth.sum(), sum(len(cell) - 1 for cells in bins for cell in cells)
    error = math.sqrt((weights**2 * variances).sum())
    rate = interval(float(weights @ means), error, freedom, worth.sum(), confidence)
    return MatchedRate(rate, float(worth.sum() / len(won)))


def variance_of_mean(outcomes: Array) -> float:
    """Return the variance of the outcomes' mean, with a floor because n equal outcomes could have differed."""
    return max(float(outcomes.var(ddof=1)), 0.25 / len(outcomes)) / len(outcomes)


def people_rate(c: Comparisons, confidence: float) -> dict[str, Any] | None:
    """Return the win rate by people's words, a random part of the comparisons that are not alike; None of too few.

    From 50 words on the judge stands in for people on the other prompts, and people's words correct its mean; the
    judge's weight makes the variance smallest (Angelopoulos et al. 2023, arXiv:2311.01453). A missing word of the
    judge counts as a tie: any stand-in keeps the estimate right. Alike answers are ties by people too.
    """
    distinct = ~c.alike
    people, judge = c.people[distinct], np.nan_to_num(c.won[distinct], nan=EVEN)
    answered = ~np.isnan(people)
    words, of_words, rest = people[answered], judge[answered], judge[~answered]
    n, weight = len(words), 0.0
    if n < ALONE:
        return None
    if n >= TOGETHER and len(rest) > 1 and (spread := judge.var(ddof=1)):
        best = np.cov(words, of_words)[0, 1] / (spread * (1 + n / len(rest)))
        weight = float(np.clip(best, 0, 1))
    corrected, fitted = words - weight * of_words, 2 if weight else 1
    mean, variance = float(corrected.mean()), corrected.var(ddof=fitted) / n
    if weight:
        mean += weight * float(rest.mean())
        variance += weight**2 * rest.var(ddof=1) / len(rest)
    rate, share = interval(mean, math.sqrt(variance), n - fitted, n, confidence), float(distinct.mean())
    # Alike answers pull the rate towards one half, and their share is itself a draw.
    of_share = z_of(confidence) * (rate.mean - EVEN) * math.sqrt(share * (1 - share) / len(distinct))
    low, high = (math.hypot(share * (bound - rate.mean), of_share) for bound in (rate.low, rate.high))
    mean = EVEN + share * (rate.mean - EVEN)
    rate = Interval(mean, max(0.0, mean - low), min(1.0, mean + high))
    return {"known": n, "win_rate": asdict(rate), "by": "people and judge" if weight else "people alone"}


def detectable(prompts: int, ties: float = 0.3, confidence: float = 0.95, power: float = 0.8) -> float:
    """Return the smallest difference of a win rate from one half that so many prompts show with this power."""
    z = z_of(confidence) + NormalDist().inv_cdf(power)
    decided = max(1 - ties, z**2 / max(1, prompts))  # twice the difference, at least
    return min(EVEN, z / 2 * math.sqrt(decided / max(1, prompts)))
