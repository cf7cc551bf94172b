"""What a strategy takes of all prompts, and the figures by which strategies are compared."""

from collections import Counter
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from stages.config.blocks.pairs import Pairs
from stages.config.choices import Strategy
from stages.pairing.admission import Admission
from stages.pairing.contrasts import Contrast
from stages.pairing.strategies import select
from stages.store.numbers import signed
from stages.store.records import Example


@dataclass
class Taking:
    """The contrasts that become pairs, with their prompts; how many prompts gave none, by reason, and how many usable
    contrasts of each prompt were left."""

    pairs: list[tuple[Example, Contrast]] = field(default_factory=list)
    without: Counter[str] = field(default_factory=Counter)
    left: dict[str, int] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """What tells strategies apart. Lengths are in tokens; margin and share are None where nothing has any."""
        taken = [contrast for _, contrast in self.pairs]
        margins = [c.margin for c in taken if c.margin is not None]
        longer = [c.longer_by > 0 for c in taken if c.longer_by]
        return {
            "pairs": len(taken),
            "prompts": len({prompt.id for prompt, _ in self.pairs}),
            "margin": fmean(margins) if margins else None,
            "chosen_longer_by": fmean(c.longer_by for c in taken) if taken else None,
            "longer_chosen": fmean(longer) if longer else None,
        }


def take(prompts: list[Example], admission: Admission, strategy: Strategy, cfg: Pairs) -> Taking:
    """What a strategy takes of the contrasts that were admitted."""
    taking, of_task = Taking(), Counter[str]()
    for prompt in prompts:
        usable, reason = admission.usable[prompt.id], admission.reasons.get(prompt.id, "")
        if usable and cfg.max_per_task and max(of_task[task] for task in prompt.tasks) >= cfg.max_per_task:
            usable, reason = [], "its task has pairs.max_per_task pairs"
        if not usable:
            taking.without[reason] += 1
        chosen = select(usable, strategy, cfg, prompt.id)
        of_task.update(prompt.tasks * len(chosen))
        taking.left[prompt.id] = len(usable) - len(chosen)
        taking.pairs += [(prompt, contrast) for contrast in chosen]
    return taking


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
