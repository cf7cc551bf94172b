"""Simulate how often intervals hold the truth: `python -m tests.bench.intervals [tables=4000]`.

Tables of outcomes are drawn from known truths: families whose effects differ, prompts that one of two models passes
and the other does not. For every case and both questions (these families, families like these): how often the interval of the difference holds
the truth, and how often it says "helped". `seeds`: how often it holds what the recipe gains over all seeds, which it
does not promise. Then how often a comparison of several settings calls a difference real, and how often a claim of
retention holds that is false by exactly its margin.
"""

import logging
import sys
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.best_model import compare_models
from stages.evaluation.intervals import Interval, Means
from stages.evaluation.retention import p_of_shares

Array = NDArray[np.float64]
UNEQUAL = (5, 8, 10, *range(12, 50, 2), 50, 55, 60, 65, 70, 80)


@dataclass(frozen=True)
class Case:
    """A simulated truth: prompts per family; the policy's mean gain over SFT; the sd of the gain between families and
    between seeds; the share of prompts that only one of the models passes without a gain; SFT's pass rate."""

    name: str
    sizes: tuple[int, ...]
    gain: float = 0.0
    family: float = 0.0
    seed: float = 0.0
    discordant: float = 0.075
    rate: float = 0.5

    def families(self) -> list[str]:
        return [str(i) for i, size in enumerate(self.sizes) for _ in range(size)]

    def table(self, rng: np.random.Generator) -> tuple[Array, dict[str, float]]:
        """Draw outcomes, shape (prompts, 2) for SFT and policy, and return them with the true gains."""
        of_seed = self.gain + rng.normal(0, self.seed)
        effects = of_seed + rng.normal(0, self.family, len(self.sizes))
        sizes = np.array(self.sizes)
        of_prompt = np.repeat(effects, sizes)
        gained = np.minimum(self.discordant / 2 + np.maximum(of_prompt, 0), 1)
        lost = np.minimum(self.discordant / 2 + np.maximum(-of_prompt, 0), 1 - gained)
        both = np.clip(self.rate - lost, 0, 1 - gained - lost)
        luck = rng.random(sizes.sum())
        sft = (luck < lost) | ((luck >= lost + gained) & (luck < lost + gained + both))
        policy = (luck >= lost) & (luck < lost + gained + both)
        return np.stack([sft, policy], 1).astype(float), {
            "these": float((gained - lost).mean()),
            "like": of_seed,
        }


CASES = (
    Case("28 × 28, no effect", (28,) * 28),
    Case("28 × 28, +3 points, family sd 2", (28,) * 28, 0.03, 0.02),
    Case("28 × 28, +5 points, family sd 10", (28,) * 28, 0.05, 0.10),
    Case("28 × 28, +3 points, family sd 2, seed sd 2", (28,) * 28, 0.03, 0.02, 0.02),
    Case("28 families of 5 to 80, +3 points, sd 3", UNEQUAL, 0.03, 0.03),
    Case("40 × 5 at 5%, no effect", (5,) * 40, discordant=0.06, rate=0.05),
    Case("5 × 60, +3 points, sd 3", (60,) * 5, 0.03, 0.03),
)


def main(tables: int = 4000) -> None:
    of_differences(tables)
    of_settings(tables // 4)
    of_claims(tables)


def of_differences(tables: int) -> None:
    for case in CASES:
        families = case.families()
        rng = np.random.default_rng(0)
        rows_by_question = defaultdict[str, list[tuple[Interval, float]]](list)
        for _ in range(tables):
            outcomes, truths = case.table(rng)
            for question in ("these", "like"):
                interval = Means(outcomes, families, question == "like").difference(1, 0)
                rows_by_question[question].append((interval, truths[question]))
                if case.seed:
                    rows_by_question[f"{question}, seeds"].append((interval, case.gain))
        for question, rows in rows_by_question.items():
            holds = [low(interval) <= truth <= high(interval) for interval, truth in rows]
            helped = [interval.low > 0 for interval, _ in rows]
            shares = (100 * np.mean(holds), 100 * np.mean(helped))
            logging.info("%-44s %-12s holds %.1f%%, helped %.1f%%", case.name, question, *shares)


def low(interval: Interval) -> float:
    return interval.low - 1e-12


def high(interval: Interval) -> float:
    return interval.high + 1e-12


@dataclass(frozen=True)
class Sweep:
    """Settings held against SFT on so many families of so many prompts: what each gains, and as in `Case`."""

    name: str
    families: int
    prompts: int
    gains: tuple[float, ...]
    family: float = 0.03
    discordant: float = 0.075

    def table(self, rng: np.random.Generator) -> Array:
        """Outcomes (prompts, [SFT, *settings]): every setting gains and loses prompts of its own."""
        rows = self.families * self.prompts
        effects = np.array(self.gains) + rng.normal(
            0, self.family, (self.families, len(self.gains))
        )
        of_prompt = np.repeat(effects, self.prompts, 0)
        sft = rng.random((rows, 1)) < 0.5
        turned = rng.random(of_prompt.shape)
        lost = (self.discordant / 2 + np.maximum(-of_prompt, 0)) / 0.5
        gained = (self.discordant / 2 + np.maximum(of_prompt, 0)) / 0.5
        settings = np.where(sft, turned >= lost, turned < gained)
        return np.concatenate([sft, settings], 1).astype(float)


SWEEPS = (
    Sweep("7 settings, none better", 28, 11, (0.0,) * 7),
    Sweep("7 settings, one +8 points", 28, 11, (0.08, *(0.0,) * 6)),
)


def of_settings(tables: int) -> None:
    """The share of tables in which the best of several settings is called better than SFT."""
    logging.info("\n%-44s %6s %14s", "settings", "any", "the better one")
    for sweep in SWEEPS:
        rng = np.random.default_rng(0)
        any_one = 0
        first = 0
        families = [str(i) for i in range(sweep.families) for _ in range(sweep.prompts)]
        for _ in range(tables):
            comparison = compare_models(sweep.table(rng), families)
            settings = range(1, len(sweep.gains) + 1)
            better = [comparison.corrected(0, i).low > 0 for i in settings]
            any_one, first = any_one + any(better), first + better[0]
        logging.info(
            "%-44s %5.1f%% %13.1f%%", sweep.name, 100 * any_one / tables, 100 * first / tables
        )


def of_claims(tables: int) -> None:
    """The share of evaluations that claim retention although the policy loops more by exactly the margin."""
    logging.info("\nclaims that are false by 2 points, at the level of 5%%")
    for base in (0.0, 0.05):
        claims = []
        for prompts in (32, 64, 200, 800):
            rng = np.random.default_rng(0)
            count = 0
            for _ in range(tables):
                before, policy = (rng.random(prompts) >= share for share in (base, base + 0.02))
                count += p_of_shares(policy.astype(float), before.astype(float), 0.02) <= 0.05
            claims.append(f"{prompts} prompts {count / tables:.1%}")
        logging.info("base loops in %.0f%%: %s", 100 * base, ", ".join(claims))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(**{name: int(value) for name, _, value in (word.partition("=") for word in sys.argv[1:])})
