"""Simulation of judged comparisons, their claims and coverage: `python -m tests.bench.win_rates [tables=2000]`.

Prints how often a verdict is given between two models that are equally good (five judges, three numbers of prompts,
four drifts of the policy's length), how often a better policy is called better, which difference is found in 80 of 100
tables, and how often an interval by people's words and the judge's holds the truth and how wide it is. Takes about six
minutes of one core.
"""

import logging
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.intervals import Interval
from stages.evaluation.win_rates import (
    Comparisons,
    comparison_results,
    detectable,
    people_rate,
    win_rate,
)

Array = NDArray[np.float64]
SIZES, DRIFTS = (100, 400, 800), (0.0, 0.5, 1.0, 2.0)
LEVEL = {"no measurable difference", "too few to say"}
CERTAIN = np.inf  # log-odds of a judge that never errs


@dataclass(frozen=True)
class Judge:
    """A judge that prefers the longer answer with these log-odds at a difference of one sd, the answer that it sees
    first with those, and the policy's with `gain`; a share of its words are ties, and a share is missing."""

    name: str
    longer: float = 0.0
    first: float = 0.0
    gain: float = 0.0
    ties: float = 0.3
    missing: float = 0.0

    def table(
        self, rng: np.random.Generator, prompts: int, drift: float, alike: float = 0.0
    ) -> Comparisons:
        """Differences of lengths are normal around `drift`, in tokens of which 60 are one sd."""
        of_length = rng.normal(drift, 1, prompts)
        shown_first = rng.random(prompts) < 0.5
        odds = self.gain + leaning(
            self.longer, np.sign(of_length) * np.minimum(np.abs(of_length), 1.5)
        )
        odds = odds + leaning(self.first, np.where(shown_first, 1.0, -1.0))
        won = (rng.random(prompts) < 1 / (1 + np.exp(-odds))).astype(float)
        won[rng.random(prompts) < self.ties] = 0.5
        won[rng.random(prompts) < self.missing] = np.nan
        copies = rng.random(prompts) < alike
        won[copies], tokens = 0.5, np.where(copies, 0, away_from_zero(60 * of_length))
        return Comparisons(won, tokens, np.full(prompts, np.nan), shown_first, copies, won)


def leaning(odds: float, toward: Array) -> Array:
    return 50 * np.sign(toward) if odds == CERTAIN else odds * toward


def away_from_zero(tokens: Array) -> NDArray[np.int64]:
    return (np.sign(tokens) * np.ceil(np.abs(tokens))).astype(int)


NULLS = (
    Judge("no lean"),
    Judge("leans to longer", longer=1.0),
    Judge("longer always wins", longer=CERTAIN, ties=0.0),
    Judge("first always wins", first=CERTAIN, ties=0.0),
    Judge("noise", ties=0.85, missing=0.1),
)
# of two answers of equal length the policy's wins 60 of 100 that are no tie
GAIN = float(np.log(0.6 / 0.4))


def verdicts(
    judge: Judge, tables: int, prompts: int, drift: float, alike: float = 0.0, seed: int = 0
) -> Counter[str]:
    rng = np.random.default_rng(seed)
    return Counter(
        comparison_results(judge.table(rng, prompts, drift, alike), 0.95, 0.9)["effect"]
        for _ in range(tables)
    )


def claims(effects: Counter[str]) -> float:
    """The share of tables that call the policy better or worse."""
    return (effects["better"] + effects["worse"]) / effects.total()


def audited(
    rng: np.random.Generator,
    truth: float,
    right: tuple[float, float],
    words: int,
    prompts: int = 800,
) -> Comparisons:
    """Comparisons of which people know the first `words`. `right`: how often the judge is where the policy's answer is
    better, and where it is not."""
    people = (rng.random(prompts) < truth).astype(float)
    won = np.where(
        people == 1, rng.random(prompts) < right[0], rng.random(prompts) >= right[1]
    ).astype(float)
    nothing = np.zeros(prompts)
    return Comparisons(
        won,
        nothing,
        np.where(np.arange(prompts) < words, people, np.nan),
        nothing,
        nothing > 0,
        won,
    )


JUDGES = ((0.65, 0.65), (0.8, 0.8), (0.9, 0.6))


@dataclass(frozen=True)
class Covered:
    """Coverage and mean width of intervals, with the judge and by people alone."""

    together: float
    alone: float
    width: float
    width_alone: float


def covered(
    tables: int, truth: float, right: tuple[float, float], words: int, seed: int = 0
) -> Covered:
    rng, sums = np.random.default_rng(seed), np.zeros(4)
    for _ in range(tables):
        c = audited(rng, truth, right, words)
        estimate = people_rate(c, 0.95)
        assert estimate
        intervals = Interval(**estimate["win_rate"]), win_rate(c.people[:words])
        sums += [
            *(i.low <= truth <= i.high for i in intervals),
            *(i.high - i.low for i in intervals),
        ]
    return Covered(*(sums / tables))


def main(tables: int = 2000) -> None:
    logging.info("%d tables of equally good models: %% with a verdict, with any effect", tables)
    for alike in (0.0, 0.75):
        for judge in NULLS:
            for prompts in SIZES:
                line = []
                for drift in DRIFTS:
                    effects = verdicts(judge, tables, prompts, drift, alike)
                    any_effect = 1 - sum(effects[word] for word in LEVEL) / tables
                    line.append(f"{100 * claims(effects):4.1f} {100 * any_effect:5.1f}")
                logging.info(
                    "%3.0f%% alike %-20s %4d | %s",
                    100 * alike,
                    judge.name,
                    prompts,
                    " | ".join(line),
                )
    logging.info("\na policy that wins 60% of decided answers of equal length: % called better")
    for judge in (Judge("no lean", gain=GAIN), Judge("leans to longer", longer=1.0, gain=GAIN)):
        for prompts in (*SIZES, 1600):
            shares = [
                verdicts(judge, tables, prompts, drift)["better"] / tables for drift in DRIFTS
            ]
            logging.info(
                "%-20s %4d | %s",
                judge.name,
                prompts,
                " | ".join(f"{100 * share:5.1f}" for share in shares),
            )
    logging.info("\nthe detectable difference, and % of tables whose win rate is clear of one half")
    for prompts in (50, *SIZES):
        for ties in (0.0, 0.3, 0.8):
            logging.info(
                "%4d ties %.1f | %.4f %5.1f",
                prompts,
                ties,
                detectable(prompts, ties),
                power_of(prompts, ties),
            )
    logging.info(
        "\ntruth, judge right, words of 800: coverage with the judge, alone; widths, ratio"
    )
    for truth in (0.5, 0.6):
        for right in JUDGES:
            for words in (50, 100, 300):
                f = covered(5 * tables, truth, right, words)
                logging.info(
                    "%.1f %.2f/%.2f %3d | %.4f %.4f | %.3f %.3f %.3f",
                    truth,
                    *right,
                    words,
                    f.together,
                    f.alone,
                    f.width,
                    f.width_alone,
                    f.width / f.width_alone,
                )


def power_of(prompts: int, ties: float, tables: int = 2000) -> float:
    """Return in how many of 100 tables a policy better by the detectable difference has an interval above one half."""
    better = 0.5 + detectable(prompts, ties) / (1 - ties)
    count, rng = 0, np.random.default_rng(0)
    for _ in range(tables):
        won = (rng.random(prompts) < better).astype(float)
        won[rng.random(prompts) < ties] = 0.5
        count += win_rate(won).low > 0.5
    return 100 * count / tables


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(**{name: int(value) for name, _, value in (word.partition("=") for word in sys.argv[1:])})
