"""Which objective is worth its cost? Every arm of a table in arms.yaml, trained from the same SFT.

`python -m tests.bench.arms OUTPUTS TABLE [SEED …] [ARM …]`

Runs one training at a time by `run.py`, in the store OUTPUTS, and can be stopped at any time: the same command goes on.
What a training came to is kept in tests/bench/outcomes/: TABLE.parquet has a row for each of its answers, TABLE.json
its costs. An arm that stands there is not trained again, so another machine, with another store, adds a seed. Prints
the table first, and after each training.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

from stages.config.installation import read_beside
from stages.config.stage_table import Target
from stages.curation.answer_rules import is_repetitive
from stages.evaluation.coverage import coverage_of
from stages.evaluation.estimate import Means, over_seeds
from stages.evaluation.outcomes import Outcome, average_runs, read_answers, tabulate
from stages.evaluation.outcomes import Table as Outcomes
from stages.evaluation.results import read_results
from stages.pipeline.provenance import stage_to_type
from stages.store.manifest import manifest_of
from stages.store.node import Node
from stages.store.records import Example, load, save
from stages.store.store import Store
from stages.store.table_schema import Int32
from tests.bench import chains
from tests.budgets import spent
from tests.helpers import ROOT, composed, settings_by_key

RESULTS = ROOT / "tests" / "bench" / "outcomes"
SFT = "sft"
MARGIN = 0.03  # by which an arm may be worse than SFT on the prompts that guard
LEVEL = 0.05  # of this test, which is one-sided
DRAWS = 8
VALIDATION = "answer.split=validation"
EMPTY = "–"
HEADS = (
    *("rate", "seeds", "passes"),
    *("− SFT", "by seed", "corrected"),
    *("− its control", "by seed"),
    *("tokens", "ends", "loops"),
)


@dataclass(frozen=True)
class Arm:
    """A training from the table's SFT model, or SFT itself. See arms.yaml."""

    title: str
    settings: Sequence[str]
    role: str = "policy"
    rate_key: str = ""
    rates: Sequence[float] = ()
    rate_of: str = ""
    control: str = ""

    def overrides(self, rate: float | None) -> list[str]:
        """Return the overrides of the arm's training at a learning rate; None: the arm has none."""
        if rate is None:
            return [*self.settings]
        return [*self.settings, f"{self.rate_key}={rate}"]


@dataclass(frozen=True)
class Table:
    """The arms of a table and what they have in common. See arms.yaml."""

    name: str
    recipe: str
    seeds: Sequence[int]
    base: str
    tuning_epochs: float | None
    views: dict[str, list[str]]
    decides: str
    guards: str
    arms: dict[str, Arm]

    @classmethod
    def read(cls, name: str) -> "Table":
        block = read_beside(__file__)[name]
        arms = {arm: Arm(**keys) for arm, keys in block["arms"].items()}
        return cls(**block | {"name": name, "arms": arms})

    def line(self, arm: str, rate: float | None, seed: int) -> list[str]:
        """Return the overrides of the run that trains an arm."""
        return [
            f"recipe={self.recipe}",
            "tracker=none",
            f"seed={seed}",
            *self.arms[arm].overrides(rate),
        ]

    def changed_keys(self, arm: str) -> set[str]:
        """Return the keys in which an arm's composed settings differ from those of the base arm."""
        own, base = (
            settings_by_key(composed(*self.line(name, None, 0))) for name in (arm, self.base)
        )
        return {key for key in own.keys() | base.keys() if own.get(key) != base.get(key)}

    def stated_keys(self, arm: str) -> set[str]:
        """Return the keys that an arm states to be other than those of the base arm."""
        stated = {*self.arms[arm].settings} - {*self.arms[self.base].settings}
        return {setting.partition("=")[0] for setting in stated}


@dataclass
class ArmOutcome(Outcome):
    """The result of an arm's answer to a prompt. `role`: the arm."""

    seed: Int32
    loops: bool


@dataclass
class Training:
    """What an arm's training cost and came to, beside its answers.

    Args:
        cpu_seconds: of the command that trained it; None if the store had it already, or had a part of it, or if the
            command trained more.
        kl: from SFT, in nats per token."""

    arm: str
    seed: int
    rate: float | None
    cpu_seconds: float | None
    kl: float | None
    pass_at_draws: float
    distinct: float
    processor: str


@dataclass
class Record:
    """What is kept of a table's trainings. `validation`: by arm and learning rate, the validation prompts passed."""

    table: str
    validation: dict[str, dict[str, int]] = field(default_factory=dict)
    trainings: list[Training] = field(default_factory=list)
    outcomes: list[ArmOutcome] = field(default_factory=list)

    @classmethod
    def read(cls, table: str) -> "Record":
        file = RESULTS / f"{table}.json"
        if not file.exists():
            return cls(table)
        content = json.loads(file.read_text(encoding="utf-8"))
        trainings = [Training(**training) for training in content["trainings"]]
        rows = load(file.with_suffix(".parquet"), ArmOutcome) if trainings else []
        return cls(table, content["validation"], trainings, rows)

    def write(self) -> None:
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"{self.table}.json"
        if self.trainings:
            save(file.with_suffix(".parquet"), self.outcomes, ArmOutcome)
        content = {"validation": self.validation, "trainings": [*map(asdict, self.trainings)]}
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def seeds_of(self, *arms: str) -> list[int]:
        """Return the seeds with which all of these arms were trained."""
        trained = {(training.arm, training.seed) for training in self.trainings}
        seeds = sorted({seed for _, seed in trained})
        return [seed for seed in seeds if all((arm, seed) in trained for arm in arms)]

    def rows(self, arms: Sequence[str], seed: int) -> list[ArmOutcome]:
        return [row for row in self.outcomes if row.seed == seed and row.role in arms]

    def of_arm(self, arm: str) -> list[Training]:
        return [training for training in self.trainings if training.arm == arm]

    def cpu_seconds(self, arm: str) -> float | None:
        """Return the mean cost of an arm's trainings, None if none was measured."""
        costs = [training.cpu_seconds for training in self.of_arm(arm)]
        measured = [cost for cost in costs if cost is not None]
        return fmean(measured) if measured else None


@dataclass(frozen=True)
class Runs:
    """The runs of a table in a store."""

    outputs: Path
    table: Table
    record: Record

    def measure_once(self, arm: str, seed: int) -> bool:
        """Measure an arm unless the record has it, and return whether it was measured."""
        if seed in self.record.seeds_of(arm):
            return False
        self.measure(arm, seed)
        return True

    def measure(self, arm: str, seed: int) -> None:
        """Train an arm, answer the prompts, and keep what it came to."""
        rate = self.rate(arm)
        role = self.table.arms[arm].role
        line = self.table.line(arm, rate, seed)
        cost = self.train(line, role)
        evaluation = self.evaluation(line)
        drawn = self.evaluation([*line, VALIDATION, f"answer.samples={DRAWS}"])
        divergence = read_results(evaluation).kl.get(role)
        coverage = coverage_of(read_results(drawn))
        assert coverage is not None
        distinct = next(iter(coverage.distinct.values()))
        training = Training(
            arm=arm,
            seed=seed,
            rate=rate,
            cpu_seconds=cost,
            kl=divergence.per_token if divergence else None,
            pass_at_draws=coverage.passes[str(DRAWS)][role].mean,
            distinct=distinct.by_role[role],
            processor=str(manifest_of(evaluation)["processor"]),
        )
        self.record.outcomes += self.outcomes(arm, seed, line)
        self.record.trainings.append(training)
        self.record.write()

    def rate(self, arm: str) -> float | None:
        """Return an arm's learning rate: the one that passes most validation prompts, of equal ones the lowest."""
        tuned_arm = self.table.arms[arm].rate_of or arm
        tuned = self.table.arms[tuned_arm]
        if len(tuned.rates) < 2:
            return next(iter(tuned.rates), None)
        passed = self.record.validation.setdefault(tuned_arm, {})
        for rate in tuned.rates:
            if str(rate) not in passed:
                passed[str(rate)] = self.passed_validation(tuned_arm, rate)
                logging.info("%s at %g passes %d validation prompts", arm, rate, passed[str(rate)])
                self.record.write()
        return float(max(passed, key=passed.__getitem__))

    def passed_validation(self, arm: str, rate: float) -> int:
        """Train an arm at a learning rate for a few steps, and count the validation prompts that it passes."""
        line = [*self.table.line(arm, rate, self.table.seeds[0]), VALIDATION]
        if self.table.tuning_epochs is not None:
            block = self.table.arms[arm].rate_key.partition(".")[0]
            line.append(f"{block}.epochs={self.table.tuning_epochs}")
        rows = load(self.evaluation(line) / "outcomes.parquet", Outcome)
        return sum(row.passed for row in rows if row.role == self.table.arms[arm].role)

    def train(self, line: list[str], role: str) -> float | None:
        """Train a model of a run, and return its cost in CPU-seconds if this command trained all of it and nothing
        else."""
        store, nodes = self.prepared(line)
        model = nodes[f"answer_{role}"].inputs["model"]
        if store.is_built(model):
            return None
        is_resumed = store.partial(model).exists()
        stage = stage_to_type(model)
        cost = self.run([*line, f"stage={stage}"])
        return None if is_resumed or stage == Target.eval else cost

    def evaluation(self, line: list[str]) -> Path:
        """Return the folder of a run's evaluation, which is built if the store lacks it."""
        store, nodes = self.prepared(line)
        if not store.is_built(nodes["eval"]):
            self.run([*line, f"stage={Target.eval}"])
        return store.folder(nodes["eval"])

    def outcomes(self, arm: str, seed: int, line: list[str]) -> list[ArmOutcome]:
        """Return what each answer to the prompts of the table's views came to."""
        store, nodes = self.prepared(line)
        folder = store.folder(nodes[f"answer_{self.table.arms[arm].role}"])
        answers, _ = read_answers({arm: folder})
        examples = self.examples()
        groups = {group for groups in self.table.views.values() for group in groups}
        prompts = [examples[name] for name in answers[arm] if examples[name].group in groups]
        rows = list[ArmOutcome]()
        for row in tabulate(prompts, answers).outcomes():
            loops = is_repetitive(answers[arm][row.prompt_id].answer)
            rows.append(ArmOutcome(**vars(row), seed=seed, loops=loops))
        return rows

    def examples(self) -> dict[str, Example]:
        line = self.table.line(SFT, None, self.table.seeds[0])
        store, nodes = self.prepared(line)
        if not store.is_built(nodes["data"]):
            self.run([*line, "stage=data"])
        examples = load(store.folder(nodes["data"]) / "examples.parquet", Example)
        return {example.id: example for example in examples}

    def prepared(self, line: list[str]) -> tuple[Store, dict[str, Node]]:
        _, store, nodes = chains.prepared(self.outputs, line)
        return store, nodes

    def run(self, line: list[str]) -> float:
        """Run a command, and return its CPU-seconds."""
        before = spent()
        command = [sys.executable, "run.py", *line, f"outputs={self.outputs}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        return spent() - before


def recommended(decides: Outcomes, guards: Outcomes, cpu_seconds: dict[str, float]) -> str:
    """Return the arm that the rule of arms.yaml recommends."""
    guarding = guards.estimate(guards.passed)
    sft = guards.roles.index(SFT)
    qualified = list[str]()
    for column, arm in enumerate(guards.roles):
        if arm != SFT and guarding.not_worse(column, sft, MARGIN) < LEVEL:
            qualified.append(arm)
    if not qualified:
        return SFT
    rates = decides.mean(decides.passed)
    highest = decides.roles.index(max(qualified, key=rates.__getitem__))
    means = decides.estimate(decides.passed)
    level = list[str]()
    for arm in qualified:
        difference = means.difference(highest, decides.roles.index(arm))
        if difference.low <= 0 <= difference.high:
            level.append(arm)
    return min(level, key=cpu_seconds.__getitem__)


@dataclass(frozen=True)
class Printed:
    """A table as it is printed: its record, and the prompts that the answers are to."""

    table: Table
    record: Record
    examples: dict[str, Example]

    def tell(self) -> None:
        for view in self.table.views:
            self.tell_view(view)
        self.tell_costs()
        logging.info("%s", self.recommendation())

    def averaged(self, view: str, arms: Sequence[str], seeds: Sequence[int]) -> Outcomes:
        """Return the arms' outcomes on a view's prompts, averaged over seeds."""
        runs = [self.record.rows(arms, seed) for seed in seeds]
        return average_runs(runs, self.examples).group(*self.table.views[view])

    def difference(self, view: str, arm: str, other: str) -> tuple[str, str]:
        """Return the difference of two arms with its interval over prompts, and with that over seeds if there are
        several."""
        seeds = self.record.seeds_of(arm, other)
        if not seeds or arm == other:
            return EMPTY, EMPTY
        over_prompts = self.means(view, arm, other, seeds).difference(0, 1).points()
        by_seed = [self.means(view, arm, other, [seed]).change(0, 1).mean for seed in seeds]
        if len(seeds) < 2:
            return over_prompts, EMPTY
        prompts = len(self.averaged(view, [arm], seeds).prompts)
        return over_prompts, over_seeds(by_seed, 1 / prompts).points()

    def means(self, view: str, arm: str, other: str, seeds: Sequence[int]) -> Means:
        """Return the means of two arms, in this order."""
        table = self.averaged(view, [arm, other], seeds)
        columns = [table.roles.index(arm), table.roles.index(other)]
        return table.estimate(table.passed[:, columns])

    def corrected(self, view: str, arm: str) -> str:
        """Return the bounds of an arm's difference from SFT for as many comparisons as the table has (Bonferroni)."""
        seeds = self.record.seeds_of(arm, SFT)
        if not seeds or arm == SFT:
            return EMPTY
        comparisons = len(self.table.arms) - 1
        means = self.means(view, arm, SFT, seeds)
        return means.difference(0, 1, 1 - 0.05 / comparisons).bounds()

    def tell_view(self, view: str) -> None:
        lines = [[view, *HEADS]]
        for name, arm in self.table.arms.items():
            seeds = self.record.seeds_of(name)
            cells = [EMPTY] * (len(lines[0]) - 1)
            if seeds:
                table = self.averaged(view, [name], seeds)
                prompt_ids = {prompt.id for prompt in table.prompts}
                loops = [
                    row.loops
                    for seed in seeds
                    for row in self.record.rows([name], seed)
                    if row.prompt_id in prompt_ids
                ]
                cells = [
                    f"{self.record.of_arm(name)[0].rate or EMPTY}",
                    str(len(seeds)),
                    f"{100 * table.passed.mean():.1f}% of {len(table.prompts)}",
                    *self.difference(view, name, SFT),
                    self.corrected(view, name),
                    *self.difference(view, name, arm.control or name),
                    f"{table.tokens.mean():.1f}",
                    f"{100 * table.stopped.mean():.1f}%",
                    f"{100 * fmean(loops):.1f}%",
                ]
            lines.append([arm.title, *cells])
        tell_lines(lines)

    def tell_costs(self) -> None:
        lines = [
            ["arm", "KL, nats a token", f"pass@{DRAWS}", f"distinct of {DRAWS}", "CPU-seconds"]
        ]
        for name, arm in self.table.arms.items():
            trainings = self.record.of_arm(name)
            cells = [EMPTY] * 4
            if trainings:
                divergences = [each.kl for each in trainings if each.kl is not None]
                cost = self.record.cpu_seconds(name)
                cells = [
                    f"{fmean(divergences):.3f}" if divergences else EMPTY,
                    f"{100 * fmean(each.pass_at_draws for each in trainings):.1f}%",
                    f"{fmean(each.distinct for each in trainings):.2f}",
                    EMPTY if cost is None else f"{cost:.0f}",
                ]
            lines.append([arm.title, *cells])
        tell_lines(lines)

    def recommendation(self) -> str:
        """Return the sentence with the arm that the rule recommends, or why it recommends none yet."""
        arms = [*self.table.arms]
        seeds = self.record.seeds_of(*arms)
        costs = {arm: self.record.cpu_seconds(arm) for arm in arms}
        measured = {arm: cost for arm, cost in costs.items() if cost is not None}
        missing = [arm for arm in arms if arm != SFT and arm not in measured]
        if not seeds:
            return "Recommended: nothing yet, since no seed has all arms."
        if missing:
            return (
                f"Recommended: nothing yet, since the cost of {', '.join(missing)} is not measured."
            )
        decides, guards = (
            self.averaged(view, arms, seeds) for view in (self.table.decides, self.table.guards)
        )
        return f"Recommended: {self.table.arms[recommended(decides, guards, measured)].title}."


def tell_lines(lines: Iterable[Sequence[str]]) -> None:
    """Tell the lines of a table in Markdown, the first of which are its heads."""
    for number, cells in enumerate(lines):
        logging.info("| %s |", " | ".join(cells))
        if number == 0:
            logging.info("|%s", "---|" * len(cells))
    logging.info("")


def main(outputs: Path, words: list[str]) -> None:
    name, *chosen = words
    table = Table.read(name)
    record = Record.read(name)
    runs = Runs(outputs.resolve(), table, record)
    seeds = [int(word) for word in chosen if word.isdigit()] or table.seeds
    arms = [word for word in chosen if not word.isdigit()] or [*table.arms]
    printed = Printed(table, record, runs.examples())
    printed.tell()
    runs.measure_once(SFT, table.seeds[0])
    for arm in arms:
        runs.rate(arm)  # before any arm answers a test prompt
    for seed in seeds:
        for arm in (SFT, *arms):
            if runs.measure_once(arm, seed):
                printed.tell()


if __name__ == "__main__":
    chains.run(main)
