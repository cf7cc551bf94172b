"""Coverage of the evaluation's intervals: `python -m tests.bench.coverage [tables=4000]`, two minutes on one core.

A line per truth: how often the interval holds it, how often it lies above and below 0, and its mean width in points.
Of independent prompts these are exact, summed over all tables of gained and lost prompts. Of families, and of shares of
prompts with several judgements, they are of simulated tables. A star marks coverage below 93.5%, or above 97.5% where
ten or more changes are expected, or without an effect more than 2.5% of tables on a side: by more than two standard
errors where tables are simulated. The last lines are the extremes of each kind of families and number of prompts."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.estimate import Difference, Means, Share, share
from stages.evaluation.intervals import Interval
from tests.bench import alternating
from tests.evaluation.simulated import Case

SIZES = (20, 40, 120, 320, 800)
FAMILIES = ("of two prompts", "5 families", "up to 28 families")
# the share of prompts that only one model passes without a gain, the gain, and its sd between families
TRUTHS = ((0.075, 0.0, 0.0), (0.25, 0.0, 0.0), (0.05, 0.05, 0.03), (0.3, 0.12, 0.05))
CHANGING = (0.05, 0.1, 0.3, 0.5)  # the share of independent prompts that change
GAINING = (0.5, 0.7, 0.9, 1.0)  # and of which a share is gained
RARE = 1e-8  # probability of the tables that exact lines leave out


@dataclass(frozen=True)
class Settings:
    tables: int = 4000
    seed: int = 0


@dataclass(frozen=True)
class Rates:
    """What becomes of a truth: the shares of tables whose intervals hold it, lie above 0, and lie below 0."""

    covered: float
    above: float
    below: float
    width: float


@dataclass(frozen=True)
class Line:
    """The rates of a truth. `kind`: of the families; `changes`: the expected number of prompts that change; `error`: two
    standard errors of a simulated coverage, 0 of an exact one."""

    kind: str
    prompts: int
    truth: str
    rates: Rates
    changes: float
    is_null: bool
    error: float

    @property
    def a_side(self) -> float:
        """The share of tables on one side of 0. Without an effect both sides have the same."""
        return (self.rates.above + self.rates.below) / 2

    def log(self) -> None:
        rates = self.rates
        astray = rates.covered < 0.935 - self.error
        astray |= self.changes >= 10 and rates.covered > 0.975 + self.error
        astray |= self.is_null and self.a_side > 0.025 + self.error / 2
        figures = (
            f"{rates.covered:7.1%} {rates.above:7.1%} {rates.below:7.1%} {100 * rates.width:7.1f}"
        )
        title = f"{self.prompts}, {self.kind}, {self.truth}"
        logging.info("%-58s %s", title, figures + " *" * astray)


@cache
def interval_of(prompts: int, gained: int, lost: int) -> Interval:
    """Return the interval of a difference between models on independent prompts."""
    mean = (gained - lost) / prompts
    error = math.sqrt(((gained + lost) / prompts - mean**2) / (prompts - 1))
    return Difference(mean, error, prompts - 1, prompts, gained, lost).interval()


def exact(prompts: int, changing: float, gaining: float) -> Rates:
    """Return the rates where a share `changing` of prompts changes, of which a share `gaining` is gained."""
    chances = (changing * gaining, changing * (1 - gaining), 1 - changing)
    truth = chances[0] - chances[1]
    tables = likely_tables(prompts, chances)
    rates = np.array([rates_of(interval_of(*table), truth) for _, table in tables], float)
    return Rates(*np.average(rates, axis=0, weights=[chance for chance, _ in tables]).tolist())


def likely_tables(
    prompts: int, chances: tuple[float, float, float]
) -> list[tuple[float, tuple[int, int, int]]]:
    """Return each table that is not rare, as its probability and its numbers of prompts, of gained and of lost ones.
    `chances`: of a gained, a lost and an unchanged prompt."""
    gained, lost = np.indices((prompts + 1, prompts + 1)).reshape(2, -1)
    is_possible = gained + lost <= prompts
    gained, lost = gained[is_possible], lost[is_possible]
    probability = multinomial(np.stack([gained, lost, prompts - gained - lost]), chances)
    likely = probability > RARE
    columns = (probability[likely], gained[likely], lost[likely])
    return [(p, (prompts, g, b)) for p, g, b in zip(*(c.tolist() for c in columns), strict=True)]


def multinomial(counts: NDArray[np.int64], chances: Sequence[float]) -> NDArray[np.float64]:
    """Return the probability of each column of `counts`."""
    logs = np.array([math.lgamma(k + 1) for k in range(int(counts.sum(0).max()) + 1)])
    log = logs[counts.sum(0)]
    for count, chance in zip(counts, chances, strict=True):
        of_each = count * math.log(chance) if chance else np.where(count, -np.inf, 0.0)
        log = log + of_each - logs[count]
    return np.exp(log)


def simulated(case: Case, drawn: bool, tables: int, rng: np.random.Generator) -> Rates:
    """Return the rates of a difference over prompts of the case's families, or over families like these."""
    families = case.families()
    results = list[tuple[bool, bool, bool, float]]()
    for _ in range(tables):
        outcomes, truths = case.table(rng)
        interval = Means(outcomes, families, drawn).difference(1, 0)
        truth = truths["like" if drawn else "these"]
        results.append(rates_of(interval, truth))
    return Rates(*np.mean(results, axis=0).tolist())


def judged(prompts: int, each: int, truth: float, tables: int, rng: np.random.Generator) -> Rates:
    """Return the rates of a share over prompts with several judgements, whose chances differ as much as uniform ones."""
    groups = [str(i // each) for i in range(prompts * each)]
    results = list[tuple[bool, bool, bool, float]]()
    for _ in range(tables):
        chances = rng.beta(2 * truth, 2 * (1 - truth), prompts)
        hits = rng.random(prompts * each) < np.repeat(chances, each)
        results.append(rates_of(share(hits.astype(float), groups).interval(), truth))
    return Rates(*np.mean(results, axis=0).tolist())


def rates_of(interval: Interval, truth: float) -> tuple[bool, bool, bool, float]:
    covered = interval.low <= truth <= interval.high
    return covered, interval.low > 0, interval.high < 0, interval.high - interval.low


def exact_share(prompts: int, truth: float) -> float:
    """Return how often the interval of a share of independent prompts holds the truth."""
    hits = np.arange(prompts + 1)
    chances = multinomial(np.stack([hits, prompts - hits]), (truth, 1 - truth))
    covered = 0.0
    for count, chance in enumerate(chances.tolist()):
        mean = count / prompts
        error = math.sqrt(mean * (1 - mean) / (prompts - 1))
        interval = Share(mean, error, prompts - 1, prompts).interval()
        covered += chance * (interval.low <= truth <= interval.high)
    return covered


def independent() -> Iterator[Line]:
    """Yield the exact lines of independent prompts."""
    for prompts in SIZES:
        for changing in CHANGING:
            for gaining in GAINING:
                rates = exact(prompts, changing, gaining)
                truth = f"{changing:.0%} change, {gaining:.0%} of them gained"
                changes, is_null = prompts * changing, gaining == 0.5
                yield Line("independent, exact", prompts, truth, rates, changes, is_null, 0.0)


def in_families(tables: int, rng: np.random.Generator) -> Iterator[Line]:
    """Yield the simulated lines of prompts in families, fixed and drawn."""
    error = 2 * math.sqrt(0.05 * 0.95 / tables)
    for name, case in cases():
        prompts = sum(case.sizes)
        changes = prompts * (case.discordant + case.gain)
        truth = f"{case.discordant:.1%} {case.gain:+.0%}"
        for drawn in (False, True):
            rates = simulated(case, drawn, tables, rng)
            kind = f"{name}, {'drawn' if drawn else 'fixed'}"
            yield Line(kind, prompts, truth, rates, changes, not case.gain, error)


def cases() -> Iterator[tuple[str, Case]]:
    """Yield the simulated truths with the names of their families."""
    for prompts in SIZES:
        counts = (prompts // 2, 5, max(4, min(28, prompts // 5)))
        for name, count in zip(FAMILIES, counts, strict=True):
            for discordant, gain, family in TRUTHS:
                yield name, Case("", (prompts // count,) * count, gain, family, discordant)


def log_extremes(lines: Sequence[Line]) -> None:
    """Log the extremes of all lines by kind and number of prompts."""
    logging.info(
        "%-58s   least    most  a side", "extremes: coverage (most: of 10 changes or more), null"
    )
    for kind, prompts in dict.fromkeys((line.kind, line.prompts) for line in lines):
        group = [line for line in lines if (line.kind, line.prompts) == (kind, prompts)]
        least = min(line.rates.covered for line in group)
        most = max((line.rates.covered for line in group if line.changes >= 10), default=math.nan)
        a_side = max(line.a_side for line in group if line.is_null)
        logging.info(
            "%-58s %7.1f%% %7.1f%% %7.2f%%",
            f"{prompts}, {kind}",
            100 * least,
            100 * most,
            100 * a_side,
        )


def compare(cfg: Settings) -> None:
    rng = np.random.default_rng(cfg.seed)
    lines = list[Line]()
    logging.info("%-58s covered   above   below   width", "truth")
    for line in (*independent(), *in_families(cfg.tables, rng)):
        line.log()
        lines.append(line)
    log_shares(cfg.tables, rng)
    log_extremes(lines)


def log_shares(tables: int, rng: np.random.Generator) -> None:
    """Log how often the intervals of shares hold them: of prompts with several judgements, and of independent ones."""
    for truth in (0.1, 0.5, 0.78, 0.9):
        for prompts, each in ((30, 6), (60, 8)):
            covered = judged(prompts, each, truth, tables, rng).covered
            title = f"share {truth:.0%}, {prompts} prompts × {each} judgements"
            logging.info("%-58s %7.1f%%", title, 100 * covered)
    for truth in (0.01, 0.05, 0.2, 0.5):
        for prompts in SIZES:
            title = f"share {truth:.0%}, {prompts} prompts, exact"
            logging.info("%-58s %7.1f%%", title, 100 * exact_share(prompts, truth))


if __name__ == "__main__":
    alternating.run(Settings, compare)
