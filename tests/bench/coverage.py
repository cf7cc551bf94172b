"""Coverage of the evaluation's intervals: `python -m tests.bench.coverage [tables=2000]`, ten minutes on one core.

A line per truth: how often the interval holds it, how often it lies above and below 0, and its mean width in points.
Of independent prompts these are exact, summed over all tables of gained and lost prompts. Of families, and of shares of
prompts with several judgements, they are of simulated tables, with a standard error of 0.5% of 2,000 tables. A star
marks coverage below 93.5%, or above 97.5% where ten or more changes are expected, or without an effect more than 2.5%
of tables on a side."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from stages.evaluation.estimate import Difference, Means, Share, share
from stages.evaluation.intervals import Interval
from tests.bench import arms
from tests.evaluation.simulated import Case

SIZES = (20, 40, 120, 320, 800)
FAMILIES = ("of two prompts", "5 families", "up to 28 families")
# the share of prompts that only one model passes without a gain, the gain, and its sd between families
TRUTHS = ((0.075, 0.0, 0.0), (0.25, 0.0, 0.0), (0.05, 0.05, 0.03), (0.3, 0.12, 0.05))
ENUMERATED = (20, 40, 120)  # prompts of exact lines
RARE = 1e-9  # probability of the tables that exact lines leave out


@dataclass(frozen=True)
class Settings:
    tables: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Rates:
    """What becomes of a truth: the shares of tables whose intervals hold it, lie above 0, and lie below 0."""

    covered: float
    above: float
    below: float
    width: float

    def line(self, changes: float, is_null: bool, error: float) -> str:
        astray = self.covered < 0.935 - error
        astray |= changes >= 10 and self.covered > 0.975 + error
        astray |= is_null and max(self.above, self.below) > 0.025 + error
        figures = f"{self.covered:7.1%} {self.above:7.1%} {self.below:7.1%} {100 * self.width:7.1f}"
        return figures + " *" * astray


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
    covered = above = below = width = 0.0
    for gained in range(prompts + 1):
        for lost in range(prompts + 1 - gained):
            chance = multinomial((gained, lost, prompts - gained - lost), chances)
            if chance < RARE:
                continue
            interval = interval_of(prompts, gained, lost)
            covered += chance * (interval.low <= truth <= interval.high)
            above += chance * (interval.low > 0)
            below += chance * (interval.high < 0)
            width += chance * (interval.high - interval.low)
    return Rates(covered, above, below, width)


def multinomial(counts: tuple[int, ...], chances: tuple[float, ...]) -> float:
    log = math.lgamma(sum(counts) + 1)
    for count, chance in zip(counts, chances, strict=True):
        if count:
            log += count * math.log(chance) - math.lgamma(count + 1) if chance else -math.inf
    return math.exp(log)


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
    covered = 0.0
    for hits in range(prompts + 1):
        mean = hits / prompts
        error = math.sqrt(mean * (1 - mean) / (prompts - 1))
        interval = Share(mean, error, prompts - 1, prompts).interval()
        if interval.low <= truth <= interval.high:
            covered += multinomial((hits, prompts - hits), (truth, 1 - truth))
    return covered


def cases() -> Iterator[tuple[str, Case]]:
    """Yield the simulated truths with the names of their families."""
    for prompts in SIZES:
        counts = (prompts // 2, 5, max(4, min(28, prompts // 5)))
        for name, count in zip(FAMILIES, counts, strict=True):
            for discordant, gain, family in TRUTHS:
                yield name, Case("", (prompts // count,) * count, gain, family, discordant)


def compare(cfg: Settings) -> None:
    rng = np.random.default_rng(cfg.seed)
    error = 2 * math.sqrt(0.025 * 0.975 / cfg.tables)
    logging.info("%-58s covered   above   below   width", "independent prompts, exact")
    for prompts in ENUMERATED:
        for changing in (0.05, 0.1, 0.3, 0.5):
            for gaining in (0.5, 0.7, 0.9):
                line = exact(prompts, changing, gaining).line(
                    prompts * changing, gaining == 0.5, 0.0
                )
                name = f"{prompts} prompts, {changing:.0%} change, {gaining:.0%} of them gained"
                logging.info("%-58s %s", name, line)
    for name, case in cases():
        prompts = sum(case.sizes)
        changes = prompts * (case.discordant + case.gain)
        for drawn in (False, True):
            rates = simulated(case, drawn, cfg.tables, rng)
            title = f"{prompts}, {name}, {'drawn' if drawn else 'fixed'}, {case.discordant:.1%} {case.gain:+.0%}"
            logging.info("%-58s %s", title, rates.line(changes, not case.gain, error))
    for truth in (0.1, 0.5, 0.78, 0.9):
        for prompts, each in ((30, 6), (60, 8)):
            rates = judged(prompts, each, truth, cfg.tables, rng)
            title = f"share {truth:.0%}, {prompts} prompts × {each} judgements"
            logging.info("%-58s %s", title, rates.line(0, False, error))
    for truth in (0.01, 0.05, 0.2, 0.5):
        for prompts in SIZES:
            title = f"share {truth:.0%}, {prompts} prompts, exact"
            logging.info("%-58s %7.1f%%", title, 100 * exact_share(prompts, truth))


if __name__ == "__main__":
    arms.run(Settings, compare)
