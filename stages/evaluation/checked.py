"""Prompts with checks: the pass rates of all models, the primary endpoint, and rates that put them in proportion."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from stages.config.blocks.evaluation import Eval
from stages.evaluation.outcomes import (
    GROUPS,
    OUTSIDE,
    SIDES,
    Answers,
    Outcome,
    Table,
    consistency,
    matched,
    means_and_differences,
    rate_row,
)
from stages.evaluation.results import Group, Matched, Rates, Rephrased, Row
from stages.store.text_units import find_run, lower_words

# The primary endpoint is a labelled set of the user's, or the first of these groups that has prompts.
ENDPOINTS = ("seen tasks", "untrained kinds", "unseen tasks", "trained kinds", "validation kinds")
GENERATED = ("tasks", "open")  # sources of prompts that this project generates


@dataclass(frozen=True)
class CheckedResults:
    """Rates and differences by group, kind and task, and the rates that put them in proportion, as in `Results`."""

    endpoint: str | None
    primary: Group | None
    groups: dict[str, Group]
    kinds: dict[str, dict[str, Row]]
    tasks: dict[str, dict[str, Row]]
    matched: Matched | None
    rephrased: Rephrased | None


@dataclass(frozen=True)
class Checked:
    """All answers to prompts with checks: `everything` to the data's prompts, `outside` to labelled sets, by file."""

    everything: Table
    outside: dict[str, Table]

    @cached_property
    def verdict_table(self) -> Table:
        """The prompts that a verdict may be based on."""
        return self.everything.group(*GROUPS)

    @cached_property
    def groups(self) -> dict[str, Table]:
        return self.verdict_table.views() | {
            f"{OUTSIDE}{name}": table for name, table in self.outside.items()
        }

    @property
    def endpoint(self) -> str | None:
        named = (f"{OUTSIDE}{name}" for name in self.outside)
        return next((name for name in (*named, *ENDPOINTS) if name in self.groups), None)

    @property
    def primary(self) -> Table | None:
        return self.groups[self.endpoint] if self.endpoint else None

    @property
    def is_from_files(self) -> bool:
        """True if some prompts of the primary endpoint come from the user's files, not from generated tasks."""
        return self.primary is not None and any(
            e.source not in GENERATED for e in self.primary.prompts
        )

    def outcomes(self) -> list[Outcome]:
        """Return one row for each prompt and model: of the prompts that a verdict may be about."""
        tables = [self.verdict_table, *self.outside.values()]
        return [row for table in tables for row in table.outcomes()]

    def results(self, answers: Answers, cfg: Eval) -> CheckedResults:
        """Return rates and differences by group, kind and task, and the rates that put them in proportion."""
        by_group = {name: self.group_rates(name, answers, cfg) for name in self.groups}
        sides = {side: self.verdict_table.group(*names) for side, names in SIDES.items()}
        return CheckedResults(
            endpoint=self.endpoint,
            primary=by_group[self.endpoint] if self.endpoint else None,
            groups=by_group,
            kinds=rates_by(sides, "kind", cfg),
            tasks=rates_by(sides, "task", cfg),
            matched=matched(self.primary, cfg) if self.primary else None,
            rephrased=consistency(self.everything.group("rephrased")),
        )

    def group_rates(self, name: str, answers: Answers, cfg: Eval) -> Group:
        """Return the rates of a group of prompts, and of answers that contain the reference in any form."""
        table = self.groups[name]
        is_outside = name.startswith(OUTSIDE)  # those sets give no reference answers
        files = {e.source for e in table.prompts}
        own_file = ""
        if is_outside:
            own_file = name.removeprefix(OUTSIDE)
        elif len(files) == 1 and files.isdisjoint(GENERATED):
            own_file = "".join(files)
        row = replace(rate_row(table, cfg), set=own_file)
        return Group(
            **vars(row), containing=None if is_outside else containing(table, answers, cfg)
        )


def rates_by(sides: dict[str, Table], field: str, cfg: Eval) -> dict[str, dict[str, Row]]:
    """Return rates and differences by side (seen, unseen, tuning), and in each by `field` (kind or task)."""
    parts_by_side = {side: table.by(field) for side, table in sides.items() if table.prompts}
    return {
        side: {name: rate_row(part, cfg) for name, part in parts.items()}
        for side, parts in parts_by_side.items()
    }


def containing(table: Table, answers: Answers, cfg: Eval) -> Rates | None:
    """The share of answers that contain the reference's words in order, ignoring case, punctuation and other words. By
    role, with paired differences as for the strict rates; only prompts that have a reference count. None without any."""
    referenced = table.where(np.array([bool(e.reference) for e in table.prompts], bool))
    if not referenced.prompts:
        return None
    texts = [
        [(answers[role][e.id].answer, e.reference or "") for role in table.roles]
        for e in referenced.prompts
    ]
    contained = np.array([[contains_words(*pair) for pair in row] for row in texts], float)
    means = referenced.estimate(contained)
    return Rates(len(contained), means_and_differences(means, table.roles, cfg.confidence))


def contains_words(answer: str, reference: str) -> bool:
    if not (expected := lower_words(reference)):  # the reference is punctuation only
        return reference.strip() in answer
    return find_run(lower_words(answer), expected) is not None
