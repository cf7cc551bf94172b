"""Outcomes: does each model's answer pass its prompt's checks? With the rates, intervals and verdicts that follow."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.config.blocks.evaluation import Eval
from stages.config.installation import read_beside
from stages.evaluation.estimate import Means
from stages.evaluation.results import Consistency, Intervals, Matched, Rephrased, Row
from stages.store.records import Candidate, Example, load
from stages.store.table_schema import Int32
from stages.tasks.checks import share_passed

COMPARED = read_beside(__file__)
DIFFERENCES: list[tuple[str, str]] = [(a, b) for a, b in COMPARED["differences"]]
VIEWS, SIDES = (
    {name: (*groups.split(),) for name, groups in COMPARED[key].items()}
    for key in ("views", "sides")
)
# All groups except rephrased requests and open requests without constraints.
GROUPS = (
    "seen",
    "unseen_phrasings",
    "unseen_tasks",
    "open_test",
    "unseen_kinds",
    "unseen_areas",
    "open_validation",
)
# groups whose tasks are a sample of tasks that nothing trained on
UNTRAINED = {*SIDES["unseen"], *SIDES["tuning"]}
ENOUGH_PROMPTS = 800
OF_ARM = "control_"  # begins the role of an arm's control
FEWEST_PAIRS = 10  # held-out pairs; with more, the interval alone decides
ENOUGH_PAIRS = 100  # held-out pairs; with fewer, an interval is wider than ±10 points
ENOUGH_TASKS = 12
TOO_FEW_TASKS = "too few tasks to say"
LENGTH_DRIFT = 0.25

OUTSIDE = "outside: "  # before the name of a labelled set of the user's, where groups of prompts are named

Answers = dict[str, dict[str, Candidate]]  # answers by role, then by prompt id


@dataclass
class Outcome:
    """The result of a model's answer to a prompt. `passed`: all checks of the prompt; `stopped`: it ended its turn."""

    prompt_id: str
    role: str
    passed: bool
    n_tokens: Int32
    stopped: bool


def arms(roles: Collection[str]) -> list[str]:
    """Return the roles that are arms: objectives beside the policy's, without the controls of these."""
    controls = {f"{OF_ARM}{role}" for role in roles}
    named = {*chain.from_iterable(DIFFERENCES)}
    return [role for role in roles if role not in named | controls]


def differences(roles: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return the reported differences, also of arms, by name: `{"policy-sft": ("policy", "sft")}`."""
    present = {*roles}
    of_arms = list[tuple[str, str]]()
    for arm in arms(roles):
        of_arms += [("policy", arm), (arm, "sft"), (arm, f"{OF_ARM}{arm}")]
    return {f"{a}-{b}": (a, b) for a, b in [*DIFFERENCES, *of_arms] if {a, b} <= present}


def before(roles: Iterable[str]) -> str:
    """Return the role that the policy is compared with: SFT, else the base, else the model that the user named."""
    return next(role for role in ("sft", "base", "other") if role in {*roles})


def main_difference(roles: Iterable[str]) -> str:
    """Return the name of the difference that the verdict is about, such as `policy-sft`."""
    return f"policy-{before(roles)}"


@dataclass
class Table:
    """Prompts and each model's answers to them: pass (0 or 1), tokens without any thought, and stopped by itself (0 or
    1). The three arrays have the shape (prompts, models), with models in the order of `roles`."""

    roles: list[str]
    prompts: list[Example]
    passed: NDArray[Any]
    tokens: NDArray[Any]
    stopped: NDArray[Any]

    def where(self, chosen: NDArray[Any]) -> "Table":
        prompts = [e for e, keep in zip(self.prompts, chosen, strict=True) if keep]
        return Table(
            self.roles, prompts, self.passed[chosen], self.tokens[chosen], self.stopped[chosen]
        )

    def group(self, *names: str) -> "Table":
        return self.where(np.array([e.group in names for e in self.prompts], bool))

    def by(self, field: str) -> dict[str, "Table"]:
        labels = np.array([vars(e)[field] for e in self.prompts])
        return {str(label): self.where(labels == label) for label in sorted(set(labels))}

    def views(self) -> dict[str, "Table"]:
        """Return the sub-tables of VIEWS that have prompts, without views with the same prompts as an earlier one."""
        tables = dict[str, Table]()
        for name, groups in VIEWS.items():
            table = self.group(*groups)
            if table.prompts and all(table.prompts != other.prompts for other in tables.values()):
                tables[name] = table
        return tables

    @property
    def tasks_drawn(self) -> bool:
        """True if all prompts are of untrained tasks, so that their tasks are a sample of other tasks."""
        return all(e.group in UNTRAINED for e in self.prompts)

    def estimate(self, values: NDArray[Any]) -> Means:
        """Return the means of one of the arrays with their errors: over other tasks like these if the tasks are drawn, else
        over other prompts of these tasks."""
        return Means(values, [e.task for e in self.prompts], self.tasks_drawn)

    def mean(self, values: NDArray[Any]) -> dict[str, float]:
        """Return the mean over prompts, by role."""
        return dict(zip(self.roles, map(float, values.mean(0)), strict=True))

    def outcomes(self) -> list[Outcome]:
        """Return one row for each prompt and model."""
        return [
            Outcome(
                e.id,
                role,
                bool(self.passed[i, j]),
                int(self.tokens[i, j]),
                bool(self.stopped[i, j]),
            )
            for i, e in enumerate(self.prompts)
            for j, role in enumerate(self.roles)
        ]


def read_answers(folders: dict[str, Path]) -> tuple[Answers, int]:
    """Read the answers to the prompts that all models answered, and count the prompts that only some answered. A
    prompt too long for one model cannot show a difference between models."""
    answers = {
        m: {a.prompt_id: a for a in load(f / "answers.parquet", Candidate)}
        for m, f in folders.items()
    }
    all_ids = set[str]().union(*answers.values())
    shared_ids = set.intersection(*map(set, answers.values()))
    shared = {
        m: {i: a for i, a in by_prompt.items() if i in shared_ids}
        for m, by_prompt in answers.items()
    }
    return shared, len(all_ids) - len(shared_ids)


def tabulate(prompts: list[Example], answers: Answers) -> Table:
    """Check every answer; NaN if the prompt has no checks."""
    rows = [[of_model[e.id] for of_model in answers.values()] for e in prompts]
    checked = zip([e.checks for e in prompts], rows, strict=True)
    passed = [
        [share_passed(checks, a.answer) == 1 if checks else np.nan for a in row]
        for checks, row in checked
    ]
    tokens = [[a.length for a in row] for row in rows]
    stopped = [[a.finish_reason == "stop" for a in row] for row in rows]
    arrays = (
        np.array(values, float).reshape(-1, len(answers)) for values in (passed, tokens, stopped)
    )
    return Table([*answers], prompts, *arrays)


def average_runs(runs: Sequence[Sequence[Outcome]], examples: dict[str, Example]) -> Table:
    """Average outcomes over seeds, on prompts that all runs have. Intervals cover other prompts, not other seeds."""
    rows_by_run = [{(row.prompt_id, row.role): row for row in run} for run in runs]
    roles = [*dict.fromkeys(row.role for row in runs[0])]
    prompt_ids = dict.fromkeys(row.prompt_id for row in runs[0])
    prompts = [
        examples[i]
        for i in prompt_ids
        if all((i, role) in run for run in rows_by_run for role in roles)
    ]

    def mean(field: str) -> NDArray[Any]:
        values = [
            [[getattr(run[e.id, role], field) for role in roles] for e in prompts]
            for run in rows_by_run
        ]
        return np.asarray(values, float).reshape(len(rows_by_run), -1, len(roles)).mean(0)

    return Table(roles, prompts, mean("passed"), mean("n_tokens"), mean("stopped"))


def rate_row(table: Table, cfg: Eval) -> Row:
    """Return pass rates and paired differences with intervals. The intervals are over other tasks like these if
    `tasks_drawn`, else over other prompts of these tasks."""
    tasks = len({e.task for e in table.prompts})
    means = table.estimate(table.passed)
    gain = (
        table.passed[:, table.roles.index("policy")]
        - table.passed[:, table.roles.index(before(table.roles))]
    )
    return Row(
        prompts=len(table.prompts),
        tasks=tasks,
        tasks_drawn=table.tasks_drawn,
        set="",
        intervals=means_and_differences(means, table.roles, cfg.confidence),
        note=TOO_FEW_TASKS if table.tasks_drawn and tasks < ENOUGH_TASKS else "",
        gained=int((gain > 0).sum()),
        lost=int((gain < 0).sum()),
    )


def means_and_differences(means: Means, roles: Sequence[str], confidence: float) -> Intervals:
    """Return every role's mean, and the paired differences by name, with intervals."""
    row = {role: means.share(i, confidence) for i, role in enumerate(roles)}
    for name, (a, b) in differences(roles).items():
        row[name] = means.difference(roles.index(a), roles.index(b), confidence)
    return row


def matched(table: Table, cfg: Eval) -> Matched:
    """Measure how much of the main difference comes from endings and length. Returns the comparison on prompts where
    both answers end by themselves, or have similar lengths, and the gain from prompts on which only the policy ended
    its answer. The subsets depend on the models' answers, so they only describe."""
    first, policy = table.roles.index(before(table.roles)), table.roles.index("policy")
    both_ended = (table.stopped[:, first] > 0) & (table.stopped[:, policy] > 0)
    like_length = (
        np.abs(table.tokens[:, policy] - table.tokens[:, first])
        <= LENGTH_DRIFT * table.tokens[:, first]
    )
    views = {"both answers end by themselves": both_ended, "answers of like length": like_length}
    newly = (table.stopped[:, policy] > 0) & (table.stopped[:, first] == 0)
    gain = table.passed[:, policy] - table.passed[:, first]
    return Matched(
        views={
            name: rate_row(table.where(chosen), cfg)
            for name, chosen in views.items()
            if chosen.any()
        },
        gain=float(gain.mean()),
        gain_from_stopping=float((gain * newly).mean()),
    )


def consistency(table: Table) -> Rephrased | None:
    """Return prompt sensitivity over requests in several phrasings, None without any. By role: the shares of requests
    right in all, some or no phrasings, and the mean standard deviation over phrasings."""
    requests = [request.passed for request in table.by("request").values()]
    if not requests:
        return None
    right = np.array([passed.mean(0) for passed in requests])
    spread = np.array([passed.std(0) for passed in requests]).mean(0)
    shares = {"always": right == 1, "sometimes": (right > 0) & (right < 1), "never": right == 0}
    by_role = dict[str, Consistency]()
    for i, role in enumerate(table.roles):
        of_role = {name: float(share[:, i].mean()) for name, share in shares.items()}
        by_role[role] = Consistency(float(spread[i]), **of_role)
    return Rephrased(len(requests), max(map(len, requests)), by_role)
