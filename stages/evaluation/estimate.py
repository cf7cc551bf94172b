"""Estimates: the only place that an interval, a p-value or a correction comes from.

There are two questions about prompts that come in task families, with different errors. *These tasks*: what would other
prompts of the same families give? The families are strata, and only the prompts within them vary (Cochran 1977,
Sampling Techniques, ch. 5), with n − strata degrees of freedom. *Tasks like these*: what would other families give?
The families are a random sample, and the spread of their means is the whole error, because a family's mean already
contains the noise of its prompts (ch. 9). A prompt with several rows is such a family, too.

- **One share**: Clopper and Pearson's exact interval (1934, Biometrika 26:4) for the effective number of rows and the
  degrees of freedom of its error (Korn & Graubard 1998, Survey Methodology 24:2).
- **One paired difference**: Tango's score interval (1998, Statistics in Medicine 17:8) with Student's quantile, n − 1 in
  place of n and a small correction for continuity (Laud 2017, Pharmaceutical Statistics 16:5).
- **Not worse by a margin**: the p-value of the same test, at the margin.
- **A figure over seeds**: Student's interval, for other seeds on the same prompts.
- **Several claims at once**: Holm's levels (1979, Scandinavian Journal of Statistics 6:2). `compare` takes the largest
  t instead (best_model.py), because it chooses the best of the models that it compares.

Any other interval is valid for the trained models at hand: it does not contain the error of training with other seeds.

Counts are discrete, so no interval has exactly 95%. A false claim is the worse error, so the interval of a difference
makes one in 2.5% of tables of equal models at most, for each side. Without n − 1 and the correction it is 2.7% of 40
prompts: 18 gains of 26 changes lie a hair beyond the quantile. The price is power. Four changes to one side, which are luck
6 times in 100, no longer suffice: where four prompts are expected to change and all are gained, a paired t interval finds
the gain up to 19 points more often. Else it does by up to 6 points at 40 prompts, 3 at 120 and none at 800. If all changes
go one way, coverage rises to 97.8% of 20 prompts. `python -m tests.bench.coverage` computes coverage and false claims."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.distributions import (
    beta_quantile,
    binomial_at_most,
    student_exceeding,
    student_quantile,
)
from stages.evaluation.intervals import Interval

POWER = 0.9  # probability that a claim holds at `prompts_needed` if nothing got worse
SAMPLES = 2000  # of the prompts in a bootstrap
HALVINGS = 28  # of the range in which a bound is searched
HALVINGS_OF_P = 24  # for five digits of a p-value
LEAST_Z, MOST_Z = 0.01, 6.0  # in units of which a p-value is searched: 0.496 to 1e-9
NORMAL = NormalDist()
NO_ERROR = 1e-12  # a standard error below it is a rounding error of 0
FEWEST_IN_STRATUM = 3  # prompts of a family whose spread counts by itself
CONTINUITY = 0.1  # of a change: what a test takes off the distance of a difference

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """A mean of outcomes in [0, 1] with its standard error.

    Args:
        freedom: the degrees of freedom of the error.
        draws: the number of independent draws that equal outcomes count as: of rows, or of prompts or families."""

    mean: float
    error: float
    freedom: float
    draws: float

    @property
    def effective(self) -> float:
        """The number of independent rows with the same standard error."""
        spread = self.mean * (1 - self.mean)
        return 1 + spread / self.error**2 if self.error > NO_ERROR and spread > 0 else self.draws

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return the exact interval."""
        tail = (1 + confidence) / 2
        n = self.rows_at(tail)
        mean = min(1.0, max(0.0, self.mean))
        hits, misses = mean * n, (1 - mean) * n
        low = 1 - beta_quantile(tail, misses + 1, hits) if hits > 0 else 0.0
        high = beta_quantile(tail, hits + 1, misses) if misses > 0 else 1.0
        return Interval(mean, low, high)

    def rejects(self, truth: float, tail: float) -> bool:
        """Return True if a true share on one side of the mean is outside the interval with this probability of a tail."""
        n = self.rows_at(tail)
        if truth > self.mean:
            return binomial_at_most(self.mean * n, n, truth) < 1 - tail
        return binomial_at_most((1 - self.mean) * n, n, 1 - truth) < 1 - tail

    def rows_at(self, tail: float) -> float:
        """Return `effective`, or fewer if the error has fewer degrees of freedom than that."""
        if self.error <= NO_ERROR:
            return self.effective
        return self.effective / freedom_inflation(tail, self.freedom, self.effective)


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences in [-1, 1] with its standard error.

    Tango's variance of a row at a true difference δ is ψ(δ) − δ², with ψ(δ) the likeliest share of rows that change.
    The standard error is moved to δ by what that variance changes from the observed difference on. So strata and
    families keep their own error, and independent rows have Tango's interval. CONTINUITY takes a tenth of a change off
    the distance to δ, so that a table which lies a hair beyond the quantile does not exclude it.

    Args:
        freedom: the degrees of freedom of the error.
        rows: the number of differences.
        gained: the sum of the positive ones.
        lost: that of the negative ones, without its sign.
        step: the size of a change, below 1 for means over seeds: the sum of squares divided by that of sizes."""

    mean: float
    error: float
    freedom: float
    rows: float
    gained: float
    lost: float
    step: float = 1.0

    def trinomial_variance(self, delta: float) -> float:
        """Return the variance of a row at a true difference `delta` (Tango, eq. 7 and 10)."""
        delta /= self.step
        if not -1 < delta < 1:
            return 0.0
        gained, lost = self.gained / self.step, self.lost / self.step
        a = 2 * self.rows
        b = (a - gained + lost) * delta - gained - lost
        c = -lost * delta * (1 - delta)
        losing = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        return self.step**2 * (2 * losing + delta - delta**2)

    def variance(self, delta: float, inflation: float) -> float:
        """Return the squared standard error at a true difference `delta`, at least that of changes to one side.
        `inflation`: of the squared error, for its degrees of freedom."""
        plain = self.step * (self.gained + self.lost) / self.rows - self.mean**2
        # The squared error divides by n − 1, too.
        added = (self.trinomial_variance(delta) - plain) / (self.rows - 1)
        one_way = (self.step * abs(delta) - delta**2) / (self.rows - 1)
        return max(inflation * self.error**2 + added, one_way)

    @property
    def all_change(self) -> bool:
        return self.gained + self.lost >= self.rows

    @property
    def gaining(self) -> Share:
        """The share of rows that gain, where all change."""
        return Share((1 + self.mean) / 2, self.error / 2, self.freedom, self.rows)

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return the differences that the test does not reject; of one row, all that are possible."""
        if self.rows <= 1:
            return Interval(self.mean, -1.0, 1.0)
        if self.all_change:
            share = self.gaining.interval(confidence)
            return Interval(self.mean, 2 * share.low - 1, 2 * share.high - 1)
        z = NORMAL.inv_cdf((1 + confidence) / 2)
        return Interval(self.mean, self.bound(-1.0, z), self.bound(1.0, z))

    def bound(self, side: float, z: float) -> float:
        """Return the last difference on the way to `side`, -1 or 1, that the test does not reject."""
        inside, outside = self.mean, side
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            if self.rejects(middle, z):
                outside = middle
            else:
                inside = middle
        return inside

    def rejects(self, delta: float, z: float) -> bool:
        """Return True if the test rejects a true difference `delta` at the normal quantile `z`; where all rows change,
        the test is exact."""
        tail = NORMAL.cdf(z)
        if self.all_change:
            return self.gaining.rejects((1 + delta) / 2, tail)
        inflation = freedom_inflation(tail, self.freedom, self.rows)
        distance = abs(self.mean - delta) - CONTINUITY * self.step / self.rows
        return distance > 0 and distance**2 > z**2 * self.variance(delta, inflation)

    def not_worse(self, margin: float, lowest: float | None = -1.0) -> float:
        """Return the p-value of the claim that the mean has fallen by less than `margin`: the test that `interval`
        inverts. `lowest`: the lowest possible difference of a row, or None. A model that loses 2% of all
        prompts loses none of 64 one time in four, so p is at least the probability that the rows miss what they must."""
        if self.rows <= 1 or self.mean + margin <= 0:
            return 1.0
        if lowest == 0:
            return 0.0
        inside, outside = LEAST_Z, MOST_Z
        for _ in range(HALVINGS_OF_P):
            z = (inside + outside) / 2
            if self.rejects(-margin, z):
                inside = z
            else:
                outside = z
        p = NORMAL.cdf(-inside)
        if lowest is None:
            return p
        hits, nearest = max(0.0, self.mean / lowest) * self.rows, max(0.0, self.mean)
        missed = (nearest + margin) / (nearest - lowest)
        return max(p, binomial_at_most(hits, self.rows, missed))


def freedom_inflation(tail: float, freedom: float, rows: float) -> float:
    """Return by what a squared error with few degrees of freedom is larger at one tail of the distribution than that of
    independent rows (Korn & Graubard 1998)."""
    most = max(1.0, rows - 1)
    if freedom >= most:
        return 1.0
    return (student_quantile(tail, freedom) / student_quantile(tail, most)) ** 2


class Means:
    """The mean outcome of every model on the same prompts, and the error of each mean and difference.

    Args:
        outcomes: (prompts, models): shares in [0, 1], or with `shares=False` any measure. A prompt's outcomes stay
            together, so differences are paired.
        families: the task family of each prompt.
        drawn: True for intervals about tasks like these, of which families are a sample; else about these tasks."""

    def __init__(
        self,
        outcomes: NDArray[Any],
        families: Sequence[str],
        drawn: bool = False,
        shares: bool = True,
    ):
        self.outcomes, self.prompts, self.shares = outcomes, len(outcomes), shares
        self.means = outcomes.mean(0)
        places = {family: i for i, family in enumerate(dict.fromkeys(families))}
        family_of = np.array([places[family] for family in families])
        if drawn and len(places) > 1:
            self._of_families(family_of)
        else:
            self._of_strata(family_of)

    def _of_families(self, family_of: NDArray[Any]) -> None:
        """Set the residuals (families, models), whose cross products sum to the covariance of the means."""
        sizes = np.bincount(family_of)
        weights = sizes / sizes.sum()
        means = totals(self.outcomes, family_of) / sizes[:, None]
        self.residuals = (weights / np.sqrt(1 - weights))[:, None] * (means - self.means)
        # Families of unequal size are worth fewer degrees of freedom than their number.
        self.freedom = max(1.0, 1 / float((weights**2).sum()) - 1)

    def _of_strata(self, family_of: NDArray[Any]) -> None:
        """Set the residuals (prompts, models) from each family's mean. Families of one or two prompts say too little of
        their spread, so they form one stratum together (collapsed strata: Cochran 1977, ch. 5A.12), in which a single
        prompt joins the smallest other family."""
        sizes = np.bincount(family_of)
        is_small = sizes[family_of] < FEWEST_IN_STRATUM
        if is_small.sum() > 1:
            family_of = np.where(is_small, family_of[is_small][0], family_of)
        elif is_small.any() and len(sizes) > 1:
            family_of = np.where(
                is_small, np.where(sizes > 1, sizes, np.iinfo(int).max).argmin(), family_of
            )
        stratum_of = np.unique(family_of, return_inverse=True)[1]
        sizes = np.bincount(stratum_of)
        means = totals(self.outcomes, stratum_of) / sizes[:, None]
        inflated = np.sqrt(sizes / np.maximum(1, sizes - 1))[stratum_of]
        self.residuals = inflated[:, None] * (self.outcomes - means[stratum_of]) / self.prompts
        self.freedom = max(1.0, float(self.prompts - len(sizes)))

    def share(self, model: int, confidence: float = 0.95) -> Interval:
        """The share of prompts that a model passes, with its interval."""
        return self.share_of(model).interval(confidence)

    def share_of(self, model: int) -> Share:
        error = float(np.linalg.norm(self.residuals[:, model]))
        mean = float(self.means[model])
        return Share(mean, error, self.freedom, len(self.residuals))

    def difference(self, a: int, b: int, confidence: float = 0.95) -> Interval:
        """The mean difference a − b with its interval; with one prompt the bounds are the widest possible."""
        change = self.change(a, b)
        if self.shares:
            return change.interval(confidence)
        t = student_quantile((1 + confidence) / 2, self.freedom)
        margin = t * change.error if self.prompts > 1 else math.inf
        return Interval(change.mean, change.mean - margin, change.mean + margin)

    def not_worse(self, a: int, b: int, margin: float, lowest: float | None = -1.0) -> float:
        """The p-value of the claim that model a is worse than b by less than `margin`; `lowest` as in `Difference`."""
        change = self.change(a, b)
        if self.shares:
            return change.not_worse(margin, lowest)
        if self.prompts <= 1 or change.error <= NO_ERROR:
            return float(self.prompts <= 1 or change.mean + margin <= 0)
        return student_exceeding((change.mean + margin) / change.error, self.freedom)

    def differs(self, a: int, b: int) -> float:
        """The p-value of the claim that the models differ; `difference` excludes 0 at the level of it."""
        return min(1.0, 2 * min(self.not_worse(a, b, 0.0, None), self.not_worse(b, a, 0.0, None)))

    def change(self, a: int, b: int) -> Difference:
        """The mean difference a − b with its error."""
        changes = self.outcomes[:, a] - self.outcomes[:, b]
        sizes = float(np.abs(changes).sum())
        return Difference(
            mean=float(self.means[a] - self.means[b]),
            error=float(np.linalg.norm(self.residuals[:, a] - self.residuals[:, b])),
            freedom=self.freedom,
            rows=self.prompts,
            gained=float(changes[changes > 0].sum()),
            lost=float(-changes[changes < 0].sum()),
            step=float((changes**2).sum()) / sizes if sizes else 1.0,
        )


def totals(outcomes: NDArray[Any], group_of: NDArray[Any]) -> Array:
    """Sum the outcomes of each group: (groups, models)."""
    return np.stack([np.bincount(group_of, column) for column in outcomes.T], 1)


def share(outcomes: Sequence[bool] | Array, groups: Iterable[str]) -> Share:
    """Return the share of outcomes, of which those of one group are alike: all outcomes of one prompt."""
    return Means(np.array(outcomes, float)[:, None], [*groups], drawn=True).share_of(0)


def mean_of_shares(parts: Sequence[Share]) -> Share:
    """Return the mean of shares of different rows, each with the same weight."""
    n = len(parts) ** 2 / sum(1 / part.effective for part in parts)
    return Share(fmean(part.mean for part in parts), 0.0, n - 1, n)


def difference(
    before: Sequence[float], after: Sequence[float], confidence: float = 0.95
) -> Interval:
    """Return the mean difference of two measurements of the same rows, of any size, with Student's interval."""
    table = np.array([before, after], float).T
    return Means(table, [""] * len(table), shares=False).difference(1, 0, confidence)


def over_seeds(
    values: Sequence[float], step: float, lowest: float = -1.0, confidence: float = 0.95
) -> Interval:
    """Return the mean of a figure over seeds with Student's interval for other seeds, on the same prompts.

    Args:
        values: by seed, two or more.
        step: the smallest difference of two values. Values that are equal still differ by its rounding error.
        lowest: the least value possible; the most is 1."""
    mean = fmean(values)
    spread = max(stdev(values), step / math.sqrt(12))
    quantile = student_quantile((1 + confidence) / 2, len(values) - 1)
    margin = quantile * spread / math.sqrt(len(values))
    return Interval(mean, max(lowest, mean - margin), min(1.0, mean + margin))


def diluted(interval: Interval, rows: int, share: float, confidence: float = 0.95) -> Interval:
    """Return the interval of an effect that only a share of the rows can have, and the others lack. The errors of both
    are squared and added (Newcombe 1998, Statistics in Medicine 17:8)."""
    mean = share * interval.mean
    error = math.sqrt(share * (1 - share) / rows) * NORMAL.inv_cdf((1 + confidence) / 2)
    below, above = (
        math.hypot(share * (bound - interval.mean), error * interval.mean)
        for bound in (interval.low, interval.high)
    )
    return Interval(mean, max(-1.0, mean - below), min(1.0, mean + above))


def resampled(statistic: Callable[[Array], Array], tables: Array) -> Interval | None:
    """Return a statistic of the sum of `tables` (prompts, k, k), with the interval of a bootstrap that draws prompts
    with replacement (Efron & Tibshirani 1993, ch. 13). None if the statistic is not defined for all of them."""
    n, mean = len(tables), float(statistic(tables.sum(0)))
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=SAMPLES)
    draws = statistic(np.einsum("sn,nij->sij", drawn, tables))
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
    return Interval(mean, float(low), float(high)) if math.isfinite(mean) else None


def corrected_rate(
    judged: float,
    n: float,
    right1: float,
    known1: float,
    right0: float,
    known0: float,
    confidence: float = 0.95,
) -> Interval:
    """Estimate the true share of positives from a judge's share, `judged`, of n (Lee et al. 2025, arXiv:2511.21140).
    The judge was right on `right1` of `known1` known positives and on `right0` of `known0` known negatives (Rogan &
    Gladen 1978). The interval covers the sampling error of all three rates, with Agresti-Coull pseudo-observations."""
    z = NORMAL.inv_cdf((1 + confidence) / 2)
    n, m1, m0 = n + z**2, known1 + 2, known0 + 2
    p, q1, q0 = (judged * (n - z**2) + z**2 / 2) / n, (right1 + 1) / m1, (right0 + 1) / m0
    youden = q0 + q1 - 1
    rate = (p + q0 - 1) / youden
    variance1, variance0 = q1 * (1 - q1) / m1, q0 * (1 - q0) / m0
    centre = rate + 2 * z**2 * (rate * variance1 - (1 - rate) * variance0)
    spread = (
        z
        * np.sqrt(p * (1 - p) / n + (1 - rate) ** 2 * variance0 + rate**2 * variance1)
        / np.abs(youden)
    )
    plain = (judged + right0 / known0 - 1) / (right0 / known0 + right1 / known1 - 1)
    return Interval(
        np.clip(plain, 0, 1), np.clip(centre - spread, 0, 1), np.clip(centre + spread, 0, 1)
    )


def discriminates(
    right1: float, known1: float, right0: float, known0: float, confidence: float = 0.95
) -> bool:
    """Return True if sensitivity + specificity − 1 is significantly above 0; otherwise no rate can be corrected."""
    q1, q0 = (right1 + 1) / (known1 + 2), (right0 + 1) / (known0 + 2)
    error = np.sqrt(q1 * (1 - q1) / (known1 + 2) + q0 * (1 - q0) / (known0 + 2))
    return bool(known1 and known0 and q1 + q0 - 1 > NORMAL.inv_cdf((1 + confidence) / 2) * error)


def correction(p_values: Sequence[float], alpha: float) -> list[float]:
    """Return the level of each p-value by Holm's method: if every claim with p at most its level is made, one of those
    is false with probability `alpha` at most."""
    levels = [0.0] * len(p_values)
    undecided = len(p_values)
    for i in sorted(range(len(p_values)), key=p_values.__getitem__):
        levels[i] = alpha / undecided
        # After the first claim that is not made, no other one is.
        if p_values[i] <= levels[i]:
            undecided -= 1
    return levels


def prompts_needed(variance: float, above: float, alpha: float, fall: float = 0.0) -> int | None:
    """Return the number of prompts at which a claim holds with probability POWER; None if no number suffices.

    Args:
        variance: the variance of the paired differences.
        above: the distance of their mean from what the claim excludes.
        fall: the most that one outcome can get worse, 0 if unknown: the variance is at least that of a few such."""
    if above <= 0:
        return None
    return math.ceil(
        max(variance, above * (fall - above))
        * ((NORMAL.inv_cdf(1 - alpha) + NORMAL.inv_cdf(POWER)) / above) ** 2
    )
