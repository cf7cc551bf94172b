"""Strategies that choose which contrasts of a prompt become pairs, and a table that compares the strategies.

Each strategy sorts contrasts, the ones it prefers first. `pairs.max_per_prompt` limits how many become pairs."""

import random
from array import array
from collections import Counter
from collections.abc import Callable
from math import inf
from statistics import fmean
from typing import Any

from stages.config.blocks.pairs import Pairs
from stages.config.choices import Strategy
from stages.pairing.admission import AGAINST_RANKING, TASK_FULL
from stages.pairing.contrasts import Contrast
from stages.store.numbers import signed
from stages.store.records import Example

# The order in which a strategy prefers contrasts, lowest first.
ORDERS: dict[Strategy, Callable[[Contrast], Any]] = {
    # The widest margins: the best candidate against the worst (West-of-N: arXiv:2401.12086)
    Strategy.best_worst: lambda c: -c.distance,
    Strategy.all: lambda c: -c.distance,
    Strategy.random: lambda c: 0,
    # The narrowest margins, down to `pairs.min_margin`. Margins of preferences come from strengths
    # (`plackett_luce.py`). This rule is our own. It follows the finding that the worst of many candidates is not the
    # best rejected one; the paper takes a candidate two standard deviations below the mean reward (arXiv:2502.16825).
    Strategy.margin: lambda c: c.distance,
    # The best candidate against any worse one (Zephyr: arXiv:2310.16944)
    Strategy.best_random: lambda c: 0,
    # The best candidate against the best worse ones: hard negatives (arXiv:2502.14400)
    Strategy.hard: lambda c: c.distance,
    # The likeliest worse candidates, by the log-prob of the model that drew them: mistakes that it makes without luck,
    # as greedy answers would. Each is set against a better one at random. This rule is our own.
    Strategy.likely: lambda c: inf if c.worse.logprob is None else -c.worse.logprob,
    # The most equal lengths, against length bias (arXiv:2310.03716); for equal ratios the widest margins
    Strategy.length_matched: lambda c: (c.length_ratio, -c.distance),
    # The first of a ranking against all below it, then the second, and so on, as Plackett–Luce chooses
    Strategy.ranked: lambda c: (-c.standing, -c.distance),
}
# strategies that use only contrasts of the best candidate
OF_BEST = (Strategy.best_random, Strategy.hard)
# strategies without preferences against the strengths
OF_COMPARED = (Strategy.margin, Strategy.hard)
# strategies that use the ranking instead of single preferences
BY_STRENGTH = (Strategy.margin, Strategy.ranked)


def select_contrasts(
    contrasts: list[Contrast], strategy: Strategy, cfg: Pairs, prompt: str
) -> list[Contrast]:
    """Return a prompt's contrasts that a strategy chooses. A random order seeded by the prompt breaks ties."""
    shuffled = contrasts.copy()
    random.Random(f"{cfg.seed}/{prompt}").shuffle(shuffled)
    if strategy in OF_BEST:
        highest = max((c.standing for c in shuffled), default=0.0)
        shuffled = [c for c in shuffled if c.standing == highest]
    if strategy in OF_COMPARED:
        shuffled = [c for c in shuffled if c.compared]
    return sorted(shuffled, key=ORDERS[strategy])[: pairs_per_prompt(strategy, cfg)]


def pairs_per_prompt(strategy: Strategy, cfg: Pairs) -> int:
    """Return the maximal number of pairs per prompt."""
    return 1 if strategy is Strategy.best_worst else cfg.max_per_prompt


class StrategyResult:
    """Statistics of the pairs that a strategy chooses, collected prompt by prompt. `longer_by` has the chosen answers'
    surplus tokens. `prompts_without_pair` counts prompts by reason, and `left_out` usable contrasts that gave none."""

    def __init__(self, strategy: Strategy, cfg: Pairs):
        self.strategy, self.cfg = strategy, cfg
        self.pairs = self.prompts = 0
        self.margins, self.longer_by = array("d"), array("q")
        self.prompts_without_pair, self.pairs_by_task = Counter[str](), Counter[str]()
        self.left_out = Counter[str]()

    def take(self, prompt: Example, usable: list[Contrast], reason: str) -> list[Contrast]:
        """Return the contrasts that the strategy chooses from a prompt's usable ones. `reason`: explains an empty
        `usable`."""
        task_limit, tasks, key = self.cfg.max_per_task, prompt.limited_tasks, self.cfg.key
        selected = select_contrasts(usable, self.strategy, self.cfg, prompt.id)
        room = (
            task_limit - max(self.pairs_by_task[task] for task in tasks)
            if task_limit and tasks
            else len(selected)
        )
        chosen = selected[:room]
        if not chosen:
            self.prompts_without_pair[
                TASK_FULL if selected else AGAINST_RANKING if usable else reason
            ] += 1
        ranked_only = sum(not c.compared for c in usable) if self.strategy is Strategy.margin else 0
        self.left_out[f"beyond {key}.max_per_task={task_limit}"] += len(selected) - len(chosen)
        self.left_out["that the ranking alone tells"] += ranked_only
        limit = pairs_per_prompt(self.strategy, self.cfg)
        self.left_out[f"beyond the {limit} that a prompt gives"] += (
            len(usable) - ranked_only - len(selected)
        )
        self.pairs_by_task.update(tasks * len(chosen))
        self.pairs += len(chosen)
        self.prompts += bool(chosen)
        self.margins.extend(c.margin for c in chosen if c.margin is not None)
        self.longer_by.extend(c.longer_by for c in chosen)
        return chosen

    def figures(self) -> dict[str, Any]:
        """Return the figures that compare strategies. Lengths are in tokens; a figure without data is None."""
        chosen_is_longer = [by > 0 for by in self.longer_by if by]
        return {
            "pairs": self.pairs,
            "prompts": self.prompts,
            "margin": fmean(self.margins) if self.margins else None,
            "chosen_longer_by": fmean(self.longer_by) if self.longer_by else None,
            "longer_chosen": fmean(chosen_is_longer) if chosen_is_longer else None,
        }


COLUMNS = {
    "pairs": ("pairs", "{}"),
    "prompts": ("prompts", "{}"),
    "mean margin": ("margin", "{:z.3f}"),
    "chosen longer by": ("chosen_longer_by", "{:+z.1f}"),
    "longer chosen": ("longer_chosen", "{:.0%}"),
}


def table(figures: dict[str, dict[str, Any]], strategy_used: str) -> str:
    """Return the figures of all strategies as a table for a terminal, with a star at the strategy in use."""
    accuracies = [strategy.get("accuracy") or {} for strategy in figures.values()]
    # empty without an audit
    verdicts = [name for name in max(accuracies, key=len, default={}) if name != "pairs"]
    rows: list[tuple[str, ...]] = [("strategy", *COLUMNS, *verdicts)]
    for (name, strategy), accuracy in zip(figures.items(), accuracies, strict=True):
        cells = [cell(strategy[key], form) for key, form in COLUMNS.values()]
        cells += [cell(accuracy.get(verdict, {}).get("mean"), "{:.0%}") for verdict in verdicts]
        rows.append((f"{name} *" if name == strategy_used else name, *cells))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    return "\n".join(lines)


def cell(value: float | None, form: str) -> str:
    return "–" if value is None else signed(value, form)
