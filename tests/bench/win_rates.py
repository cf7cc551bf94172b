"""Simulation of judged comparisons, their claims and coverage: `python -m tests.bench.win_rates [tables=2000]`.

Prints how often a verdict is given between two models that are equally good (five judges, three numbers of prompts,
four drifts of the policy's length), how often a better policy is called better, and how often an interval by people's
words and the judge's holds the truth and how wide it is.
"""

import logging
import sys
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.intervals import Interval
from stages.evaluation.win_rates import (
    Comparisons,
    comparison_results,
    people_rate,
    win_rate,
)

Array = NDArray[np.float64]
SIZES = (100, 400, 800)
DRIFTS = (0.0, 0.5, 1.0, 2.0)
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
# of two answers of equal length its policy's wins 60 of 100 that are no tie
BETTER = Judge("no lean", gain=float(np.log(0.6 / 0.4)))


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


AUDITS = ((0.5, (0.8, 0.8), 50), (0.5, (0.65, 0.65), 100), (0.6, (0.9, 0.6), 300))


class Covered(NamedTuple):
    """Coverage and mean width of intervals with the judge, and their mean width by people alone."""

    together: float
    width: float
    width_alone: float


def covered(
    tables: int, truth: float, right: tuple[float, float], words: int, seed: int = 0
) -> Covered:
    rng = np.random.default_rng(seed)
    inside = 0
    widths = 0.0
    widths_alone = 0.0
    for _ in range(tables):
        comparisons = audited(rng, truth, right, words)
        estimate = people_rate(comparisons, 0.95)
        assert estimate
        together = Interval(**estimate["win_rate"])
        alone = win_rate(comparisons.people[:words])
        inside += together.low <= truth <= together.high
        widths += together.high - together.low
        widths_alone += alone.high - alone.low
    return Covered(inside / tables, widths / tables, widths_alone / tables)


def main(tables: int = 2000) -> None:
    logging.info("%d tables of equally good models: %% with a verdict, by drift of lengths", tables)
    for judge in NULLS:
        for prompts in SIZES:
            shares = [100 * claims(verdicts(judge, tables, prompts, drift)) for drift in DRIFTS]
            logging.info(
                "%-20s %4d  %s", judge.name, prompts, " ".join(f"{s:5.1f}" for s in shares)
            )
    logging.info("a policy that wins 60% of decided answers of equal length: % called better")
    for prompts in SIZES:
        better = verdicts(BETTER, tables, prompts, 0.0)["better"]
        logging.info("%4d  %5.1f", prompts, 100 * better / tables)
    logging.info("by people on so many of 800 and a judge: coverage, widths with it and alone")
    for truth, right, words in AUDITS:
        figures = covered(tables, truth, right, words)
        logging.info("%.1f %s %3d  %s", truth, right, words, figures)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(**{name: int(value) for name, _, value in (word.partition("=") for word in sys.argv[1:])})
