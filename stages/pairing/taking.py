"""What a strategy takes of all prompts, and the figures by which strategies are compared."""

from array import array
from collections import Counter
from statistics import fmean
from typing import Any

from stages.config.blocks.pairs import Pairs
from stages.config.choices import Strategy
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
        """Those that it takes of a prompt's usable contrasts, and how many more there are. `reason`: why there are
        none."""
        most = self.cfg.max_per_task
        if usable and most and any(self.of_task[task] >= most for task in prompt.limited_tasks):
            self.left_out[f"beyond {self.cfg.key}.max_per_task={most}"] += len(usable)
            usable, reason = [], "its task has pairs.max_per_task pairs"
        if not usable:
            self.without[reason] += 1
        chosen = select(usable, self.strategy, self.cfg, prompt.id)
        self.of_task.update(prompt.limited_tasks * len(chosen))
        self.pairs += len(chosen)
        self.prompts += bool(chosen)
        self.margins.extend(c.margin for c in chosen if c.margin is not None)
        self.longer_by.extend(c.longer_by for c in chosen)
        left = len(usable) - len(chosen)
        self.left_out[f"beyond the {limit_of(self.strategy, self.cfg)} that a prompt gives"] += left
        return chosen, left

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


COLUMNS = ("pairs", "prompts", "mean margin", "chosen longer by", "longer chosen")


def table(figures: dict[str, dict[str, Any]], mine: str) -> str:
    """The figures of every strategy, as lines for a terminal; `mine` is the one that was taken."""
    rows: list[tuple[str, ...]] = [("strategy", *COLUMNS)]
    for name, found in figures.items():
        forms = ("{}", "{}", "{:z.3f}", "{:+z.1f}", "{:.0%}")
        cells = ["–" if v is None else signed(v, form) for form, v in zip(forms, found.values(), strict=True)]
        rows.append((f"{name} *" if name == mine else name, *cells))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(lines)
