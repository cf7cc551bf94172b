"""Prompts with checks: pass rates of all models, what a verdict by them is of, and what puts them in proportion."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stages.config.blocks.evaluation import Eval
from stages.evaluation.outcomes import GROUPS, SIDES, Answers, Table, consistency, matched, rates, with_intervals
from stages.store.records import Example
from stages.store.text_units import lower_words
from stages.tasks.checks import share_passed

# What a verdict is of: the first that has prompts.
ENDPOINTS = ("seen tasks", "untrained kinds", "unseen tasks", "trained kinds", "validation kinds")
OUTSIDE = "outside: "
UNKNOWN_CONTEXT: dict[str, Any] = {"containing": {}, "constant": None}  # of prompts made without a reference
GENERATED = ("tasks", "open")  # sources of prompts that the project made


@dataclass(frozen=True)
class Checked:
    """Every answer to a prompt with checks: `everything` that was asked of the data, and labelled sets that are not
    ours (`outside`), by file."""

    everything: Table
    outside: dict[str, Table]

    @cached_property
    def ours(self) -> Table:
        """The prompts that a verdict may be of."""
        return self.everything.group(*GROUPS)

    @cached_property
    def groups(self) -> dict[str, Table]:
        return self.ours.views() | {f"{OUTSIDE}{name}": table for name, table in self.outside.items()}

    @property
    def endpoint(self) -> str | None:
        return next((name for name in ENDPOINTS if name in self.groups), None)

    @property
    def primary(self) -> Table | None:
        return self.groups[self.endpoint] if self.endpoint else None

    @property
    def of_files(self) -> bool:
        """True where prompts of the primary endpoint are somebody's own, and not generated here."""
        return self.primary is not None and any(e.source not in GENERATED for e in self.primary.prompts)

    def results(self, answers: Answers, cfg: Eval) -> dict[str, Any]:
        """Rates and differences by group, kind and task, and what puts them in proportion."""
        groups = self.groups
        by_group = {name: rates(table, cfg) for name, table in groups.items()}
        for name, row in by_group.items():
            row |= UNKNOWN_CONTEXT if name.startswith(OUTSIDE) else context_rates(groups[name], answers, cfg)
        sides = {side: self.ours.group(*names) for side, names in SIDES.items()}
        return {
            "endpoint": self.endpoint,
            "primary": by_group[self.endpoint] if self.endpoint else None,
            "groups": by_group,
            "kinds": divided(sides, "kind", cfg),
            "tasks": divided(sides, "task", cfg),
            "matched": matched(self.primary, cfg) if self.primary else {},
            "rephrased": consistency(self.everything.group("rephrased")),
        }


def divided(sides: dict[str, Table], field: str, cfg: Eval) -> dict[str, dict[str, Any]]:
    """By side, and there by kind or task: rates and differences."""
    return {
        side: {name: rates(part, cfg) for name, part in table.by(field).items()}
        for side, table in sides.items()
        if table.prompts
    }


def context_rates(table: Table, answers: Answers, cfg: Eval) -> dict[str, Any]:
    """Return what puts a pass rate in proportion: the rate of answers that hold the reference whatever their form, and
    what one constant answer per task would score."""
    return {"containing": containing(table, answers, cfg), "constant": constant(table.prompts)}


def containing(table: Table, answers: Answers, cfg: Eval) -> dict[str, Any]:
    """The share of answers that contain the reference's words in their order, whatever their case, their marks and
    what stands around them: by role, and paired differences, as of the strict rates; of the prompts that have a
    reference."""
    told = table.where(np.array([bool(e.reference) for e in table.prompts], bool))
    if not told.prompts:
        return {}
    held = [[holds(answers[role][e.id].text, e.reference or "") for role in told.roles] for e in told.prompts]
    return {"prompts": len(held), **with_intervals(told, np.array(held, float), cfg)}


def holds(answer: str, reference: str) -> bool:
    wanted, found = lower_words(reference), lower_words(answer)
    if not wanted:  # marks alone
        return reference.strip() in answer
    return any(found[i : i + len(wanted)] == wanted for i in range(len(found) - len(wanted) + 1))


def constant(prompts: Sequence[Example]) -> float | None:
    """The pass rate of one answer per task that looks at no prompt: the reference of one prompt that passes most of
    the task's others, chosen with hindsight. None where a prompt has no reference."""
    if not prompts or not all(e.reference for e in prompts):
        return None
    tasks: dict[str, list[Example]] = {}
    for e in prompts:
        tasks.setdefault(e.task, []).append(e)
    return sum(len(same) * carried_over(same) for same in tasks.values()) / len(prompts)


def carried_over(prompts: list[Example]) -> float:
    """Of one task's prompts, the share that the best of their references passes, but for the prompt it belongs to."""
    if len(prompts) == 1:
        return 0.0
    references = {e.reference or "" for e in prompts}
    passed = max(sum(share_passed(e.checks, text) == 1 for e in prompts) for text in references)
    return max(0, passed - 1) / (len(prompts) - 1)
