"""What a strategy takes of all prompts, and the figures by which strategies are compared."""

from array import array
from collections import Counter
from statistics import fmean
from typing import Any

from stages.config.blocks.pairs import Pairs
from stages.config.choices import Strategy
from stages.pairing.admission import AGAINST, FULL
from stages.pairing.contrasts import Contrast
from stages.pairing.strategies import limit_of, select
from stages.store.numbers import signed
from stages.store.records import Example


class Taking:
    """What a strategy takes, prompt by prompt: how many pairs of how many prompts, their margins and by how many
    tokens the better ones are longer; how many prompts gave none, by reason, and how many contrasts that might have
    become pairs it left out."""

    def __init__(self, strategy: Strategy, cfg: Pairs):
        self.strategy, self.cfg = strategy, cfg
        self.pairs = self.prompts = 0
        self.margins, self.longer_by = array("d"), array("q")
        self.without, self.of_task = Counter[str](), Counter[str]()
        self.left_out = Counter[str]()

    def take(self, prompt: Example, usable: list[Contrast], reason: str) -> tuple[list[Contrast], int]:
        """Return the contrasts that the strategy takes of a prompt's usable ones, and how many more a labeler told.
        `reason`: why there are none."""
        most, tasks, key = self.cfg.max_per_task, prompt.limited_tasks, self.cfg.key
        selected = select(usable, self.strategy, self.cfg, prompt.id)
        room = most - max(self.of_task[task] for task in tasks) if most and tasks else len(selected)
        chosen = selected[:room]
        if not chosen:
            self.without[FULL if selected else AGAINST if usable else reason] += 1
        untold = sum(not c.compared for c in usable) if self.strategy is Strategy.margin else 0
        self.left_out[f"beyond {key}.max_per_task={most}"] += len(selected) - len(chosen)
        self.left_out["that the ranking alone tells"] += untold
        limit = limit_of(self.strategy, self.cfg)
        self.left_out[f"beyond the {limit} that a prompt gives"] += len(usable) - untold - len(selected)
        self.of_task.update(tasks * len(chosen))
        self.pairs += len(chosen)
        self.prompts += bool(chosen)
        self.margins.extend(c.margin for c in chosen if c.margin is not None)
        self.longer_by.extend(c.longer_by for c in chosen)
        return chosen, sum(c.compared for c in usable) - len(selected) if chosen else 0

    def figures(self) -> dict[str, Any]:
        """What tells strategies apart. Lengths are in tokens; margin and share are None where nothing has any."""
        longer = [by > 0 for by in self.longer_by if by]
        return {
            "pairs": self.pairs,
            "prompts": self.prompts,
            "margin": fmean(self.margins) if self.margins else None,
            "chosen_longer_by": fmean(self.longer_by) if self.longer_by else None,
            "longer_chosen": fmean(longer) if longer else None,
        }


COLUMNS = {
    "pairs": ("pairs", "{}"),
    "prompts": ("prompts", "{}"),
    "mean margin": ("margin", "{:z.3f}"),
    "chosen longer by": ("chosen_longer_by", "{:+z.1f}"),
    "longer chosen": ("longer_chosen", "{:.0%}"),
}


def table(figures: dict[str, dict[str, Any]], mine: str) -> str:
    """Return the figures of every strategy, as lines for a terminal; `mine` is the one that was taken."""
    accuracies = [strategy.get("accuracy") or {} for strategy in figures.values()]
    verdicts = [name for name in max(accuracies, key=len, default={}) if name != "pairs"]  # of an audited pool
    rows: list[tuple[str, ...]] = [("strategy", *COLUMNS, *verdicts)]
    for (name, strategy), accuracy in zip(figures.items(), accuracies, strict=True):
        cells = [cell(strategy[key], form) for key, form in COLUMNS.values()]
        cells += [cell(accuracy.get(verdict, {}).get("mean"), "{:.0%}") for verdict in verdicts]
        rows.append((f"{name} *" if name == mine else name, *cells))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(lines)


def cell(value: float | None, form: str) -> str:
    return "–" if value is None else signed(value, form)
