"""Outcomes: whether every model's answer to a prompt passes its checks, and what follows from that, with intervals."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.config.blocks.evaluation import Eval
from stages.evaluation.intervals import Interval, Means
from stages.store.records import Candidate, Example, Outcome, load
from stages.store.truncation import MOST
from stages.tasks.checks import share_passed

# Between which models differences are taken, where both are evaluated.
DIFFERENCES = (
    *(("sft", "base"), ("control", "sft"), ("policy", "sft"), ("policy", "control"), ("policy", "base")),
    ("policy", "other"),
)
PRIMARY = "policy-sft"
# All but a request in all its phrasings, and open requests without constraints.
GROUPS = ("seen", "unseen_phrasings", "unseen_tasks", "open_test", "unseen_kinds", "unseen_areas", "open_validation")
# What is looked at by itself, and the groups that are in it.
VIEWS = {
    "seen tasks": ("seen", "unseen_phrasings"),
    "trained phrasings": ("seen",),
    "unseen phrasings": ("unseen_phrasings",),
    "untrained kinds": ("unseen_kinds", "unseen_areas"),
    "unseen tasks": ("unseen_tasks",),
    "trained kinds": ("open_test",),
    "validation kinds": ("open_validation",),
    "untrained kinds in trained areas": ("unseen_kinds",),
    "untrained areas": ("unseen_areas",),
}
# Tasks and kinds that training prompts are made of, those that are kept out, and those that settings are chosen by.
SIDES = {
    "seen": ("seen", "unseen_phrasings", "open_test"),
    "unseen": ("unseen_tasks", "unseen_kinds", "unseen_areas"),
    "tuning": ("open_validation",),
}
UNTRAINED = {*SIDES["unseen"], *SIDES["tuning"]}  # groups whose tasks are a draw from those that nobody trained on
ENOUGH_PROMPTS = 800
ENOUGH_PAIRS = 100  # held out: of fewer an interval is wider than ±10 points
ENOUGH_TASKS = 12
LENGTH_DRIFT = 0.25

Answers = dict[str, dict[str, Candidate]]  # by role, then by prompt


def differences(roles: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The differences that are taken between these models, by name: `{"policy-sft": ("policy", "sft")}`."""
    return {f"{a}-{b}": (a, b) for a, b in DIFFERENCES if {a, b} <= {*roles}}


def before(roles: Iterable[str]) -> str:
    """The model that the policy is compared with: that from which preferences made it, else the base, or another that
    the user named."""
    return next(role for role in ("sft", "base", "other") if role in {*roles})


def main_difference(roles: Iterable[str]) -> str:
    """The difference that a verdict is about: `policy-sft`, where there was an SFT to start from."""
    return f"policy-{before(roles)}"


@dataclass
class Table:
    """Prompts, and of each model's answer to them: whether it passes (0 or 1), its tokens, whether it ended itself.

    The three arrays are (prompts, models), models in the order of `roles`.
    """

    roles: list[str]
    prompts: list[Example]
    passed: NDArray[Any]
    tokens: NDArray[Any]
    stopped: NDArray[Any]

    def where(self, chosen: NDArray[Any]) -> "Table":
        kept = [e for e, keep in zip(self.prompts, chosen, strict=True) if keep]
        return Table(self.roles, kept, self.passed[chosen], self.tokens[chosen], self.stopped[chosen])

    def group(self, *names: str) -> "Table":
        return self.where(np.array([e.group in names for e in self.prompts], bool))

    def by(self, field: str) -> dict[str, "Table"]:
        labels = np.array([vars(e)[field] for e in self.prompts])
        return {str(label): self.where(labels == label) for label in sorted(set(labels))}

    def views(self) -> dict[str, "Table"]:
        """What is looked at by itself, where there are prompts of it; the same prompts once."""
        found = dict[str, Table]()
        for name, groups in VIEWS.items():
            table = self.group(*groups)
            if table.prompts and all(table.prompts != other.prompts for other in found.values()):
                found[name] = table
        return found

    def mean(self, values: NDArray[Any]) -> dict[str, float]:
        """The mean over prompts, by role."""
        return dict(zip(self.roles, map(float, values.mean(0)), strict=True))

    def outcomes(self) -> list[Outcome]:
        """A row for each prompt and model."""
        return [
            Outcome(e.id, role, bool(self.passed[i, j]), int(self.tokens[i, j]), bool(self.stopped[i, j]))
            for i, e in enumerate(self.prompts)
            for j, role in enumerate(self.roles)
        ]


def read_answers(folders: dict[str, Path]) -> tuple[Answers, int]:
    """Return every model's answers to the prompts that all models answered, and how many others some model answered:
    a prompt that is too long for one model says nothing of any difference."""
    answers = {m: {a.prompt_id: a for a in load(f / "answers.parquet", Candidate)} for m, f in folders.items()}
    every, both = set[str]().union(*answers.values()), set.intersection(*map(set, answers.values()))
    return {m: {i: a for i, a in its.items() if i in both} for m, its in answers.items()}, len(every) - len(both)


def tabulate(prompts: list[Example], answers: Answers) -> Table:
    """Check every answer; of a prompt without checks nobody knows whether one passes (NaN)."""
    given = [[of_model[e.id] for of_model in answers.values()] for e in prompts]
    passed = [
        [share_passed(e.checks, a.text) == 1 if e.checks else np.nan for a in row]
        for e, row in zip(prompts, given, strict=True)
    ]
    tokens = [[a.n_tokens for a in row] for row in given]
    stopped = [[a.finish_reason == "stop" for a in row] for row in given]
    arrays = (np.array(values, float).reshape(-1, len(answers)) for values in (passed, tokens, stopped))
    return Table([*answers], prompts, *arrays)


def averaged(runs: Sequence[Sequence[Outcome]], examples: dict[str, Example]) -> Table:
    """Evaluations of the same models from other seeds as one table: each prompt's outcomes averaged over the runs that
    all have it. Intervals over it are of the recipe on other prompts, as far as so few seeds can tell."""
    found = [{(row.prompt_id, row.role): row for row in run} for run in runs]
    roles = [*dict.fromkeys(row.role for row in runs[0])]
    asked = dict.fromkeys(row.prompt_id for row in runs[0])
    prompts = [examples[i] for i in asked if all((i, role) in run for run in found for role in roles)]

    def mean(field: str) -> NDArray[Any]:
        values = [[[getattr(run[e.id, role], field) for role in roles] for e in prompts] for run in found]
        return np.asarray(values, float).reshape(len(found), -1, len(roles)).mean(0)

    return Table(roles, prompts, mean("passed"), mean("n_tokens"), mean("stopped"))


def tasks_drawn(prompts: Iterable[Example]) -> bool:
    """Whether prompts speak for other tasks like theirs, as those of untrained tasks do; else for their own tasks."""
    return all(e.group in UNTRAINED for e in prompts)


def rates(table: Table, cfg: Eval) -> dict[str, Any]:
    """Pass rates of the models and paired differences between them, with intervals: over other prompts of these tasks,
    or over other tasks like these (`tasks_drawn`)."""
    count, drawn = len({e.task for e in table.prompts}), tasks_drawn(table.prompts)
    row: dict[str, Any] = {"prompts": len(table.prompts), "tasks": count, "tasks_drawn": drawn}
    row |= with_intervals(table, table.passed, cfg)
    row["note"] = "too few tasks to say" if drawn and count < ENOUGH_TASKS else ""
    gain = table.passed[:, table.roles.index("policy")] - table.passed[:, table.roles.index(before(table.roles))]
    return row | {"gained": int((gain > 0).sum()), "lost": int((gain < 0).sum())}


def with_intervals(table: Table, values: NDArray[Any], cfg: Eval) -> dict[str, Any]:
    """The mean of one of the table's arrays of shares by role, and the paired differences between roles."""
    means, roles = Means(values, [e.task for e in table.prompts], tasks_drawn(table.prompts)), table.roles
    row = {role: asdict(means.share(i, cfg.confidence)) for i, role in enumerate(roles)}
    for name, (a, b) in differences(roles).items():
        row[name] = asdict(means.difference(roles.index(a), roles.index(b), cfg.confidence))
    return row


def ends_less(groups: dict[str, Table], titles: dict[str, str], cfg: Eval) -> str:
    """A warning where the policy ends fewer of its answers by itself than SFT did, by more than noise; else ''. It is
    one warning of all groups: the more there are, the surer each must be (Bonferroni)."""
    first, fallen = before(titles), list[str]()
    cfg = replace(cfg, confidence=1 - (1 - cfg.confidence) / len(groups))
    for name, table in groups.items():
        found = with_intervals(table, table.stopped, cfg)
        if (delta := Interval(**found[main_difference(titles)])).high < 0:
            rates = f"{found[first]['mean']:.1%} to {found['policy']['mean']:.1%}"
            fallen.append(f"on {name} from {rates}, {delta.points()}")
    if not fallen:
        return ""
    return (
        f"{titles['policy']} ends fewer of its answers by itself than {titles[first]}: {'; '.join(fallen)}. "
        "pairs.unfinished=drop, lower sample.temperatures, a higher sample.max_new_tokens or a lower "
        "dpo.learning_rate may keep it ending."
    )


def endings_clause(table: Table, titles: dict[str, str], cfg: Eval) -> str:
    """Return what a verdict adds where the policy ends fewer of its answers than SFT, by more than noise, or where it
    ends few of them; else ''."""
    row = with_intervals(table, np.asarray(table.stopped), cfg)
    first = before(titles)
    was, policy = row[first]["mean"], row["policy"]["mean"]
    if Interval(**row[main_difference(titles)]).high < 0:
        return f", and ends fewer of its answers by itself: {was:.1%} → {policy:.1%}"
    if policy <= MOST:
        return f", and ends only {policy:.1%} of its answers by itself ({titles[first]} {was:.1%})"
    return ""


def matched(table: Table, cfg: Eval) -> dict[str, Any]:
    """How much of the main difference is form: the comparison where both models' answers end by themselves, where they
    are of like length, and the points that come from prompts on which only the policy ended its answer.

    What is compared is chosen by what the models did, so these describe and do not test.
    """
    first, policy = table.roles.index(before(table.roles)), table.roles.index("policy")
    both = (table.stopped[:, first] > 0) & (table.stopped[:, policy] > 0)
    alike = np.abs(table.tokens[:, policy] - table.tokens[:, first]) <= LENGTH_DRIFT * table.tokens[:, first]
    views = {"both answers end by themselves": both, "answers of like length": alike}
    newly = (table.stopped[:, policy] > 0) & (table.stopped[:, first] == 0)
    gain = table.passed[:, policy] - table.passed[:, first]
    return {
        "views": {name: rates(table.where(chosen), cfg) for name, chosen in views.items() if chosen.any()},
        "gain": float(gain.mean()),
        "gain_from_stopping": float((gain * newly).mean()),
    }


def consistency(table: Table) -> dict[str, Any]:
    """Prompt sensitivity: of requests put in all their phrasings, the share that a model gets right always, sometimes
    and never, and the standard deviation over phrasings, averaged over requests."""
    requests = [request.passed for request in table.by("request").values()]
    if not requests:
        return {}
    right = np.array([passed.mean(0) for passed in requests])
    spread = np.array([passed.std(0) for passed in requests]).mean(0)
    shares = {"always": right == 1, "sometimes": (right > 0) & (right < 1), "never": right == 0}
    return {
        "requests": len(requests),
        "phrasings": max(len(passed) for passed in requests),
        **{
            role: {"spread": float(spread[i])} | {name: float(share[:, i].mean()) for name, share in shares.items()}
            for i, role in enumerate(table.roles)
        },
    }


def effect(delta: Interval) -> str:
    """What a difference says of the model that made it, in a verdict."""
    return "helped" if delta.low > 0 else "hurt" if delta.high < 0 else "made no measurable change"


def beside(delta: Interval) -> str:
    """What a difference says of a model beside another that it was not made from."""
    return "passes more" if delta.low > 0 else "passes less" if delta.high < 0 else "does not measurably differ"


def verdict(primary: dict[str, Any], titles: dict[str, str], endings: str = "") -> str:
    """A plain sentence from the primary endpoint alone: the main difference, and what `endings` says of answers."""
    delta = Interval(**primary[main_difference(titles)])
    first = before(titles)
    word = effect(delta) if first != "other" else beside(delta)
    sentence = (
        f"{titles['policy']} {word}: {delta.points()} over {titles[first]}, on {primary['prompts']} held-out prompts "
        f"of {primary['tasks']} tasks{endings}."
    )
    if primary["prompts"] < ENOUGH_PROMPTS:
        sentence += f" Fewer than {ENOUGH_PROMPTS} prompts: a small effect would go unseen."
    return sentence
