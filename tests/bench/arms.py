"""Which objective is worth its cost? Every arm of a table in arms.yaml, trained from the same SFT.

`python -m tests.bench.arms OUTPUTS TABLE [SEED …] [ARM …]`

Runs one training at a time by `run.py`, in the store OUTPUTS, and can be stopped at any time: the same command goes on.
What a training came to is kept in tests/bench/outcomes/: TABLE.parquet has a row for each of its answers, TABLE.json
its costs. An arm that stands there is not trained again, so another machine, with another store, adds a seed. Prints
the table first, and after each training.
"""

import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.config.stage_table import Target
from stages.curation.answer_rules import is_repetitive
from stages.evaluation.coverage import coverage_of
from stages.evaluation.outcomes import Outcome, read_answers, tabulate
from stages.evaluation.results import read_results
from stages.pipeline.provenance import stage_to_type
from stages.store.manifest import manifest_of
from stages.store.node import Node
from stages.store.records import Example, load
from stages.store.store import Store
from tests.bench import chains
from tests.bench.arm_record import DRAWS, ArmOutcome, Record, Training
from tests.bench.arm_settings import SFT, TableSettings, read_tables
from tests.bench.arm_table import Printed
from tests.budgets import spent
from tests.helpers import ROOT

VALIDATION = "answer.split=validation"


@dataclass(frozen=True)
class Runs:
    """The runs of a table in a store."""

    outputs: Path
    table: TableSettings
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
                logging.info("%s at %g passes %d", tuned_arm, rate, passed[str(rate)])
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


def require_names(what: str, words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the words, which have to be names of tables or arms."""
    for word in words:
        if word not in names:
            raise SystemExit(f"{word}: no such {what}. One of {', '.join(names)}.")
    return [*words]


def main(outputs: Path, words: list[str]) -> None:
    names = require_names("table", words[:1] or [""], [*read_tables()])
    table = TableSettings.read(names[0])
    seeds = [int(word) for word in words[1:] if word.isdigit()] or table.seeds
    chosen = [word for word in words[1:] if not word.isdigit()]
    arms = require_names("arm", chosen, [*table.arms]) or [*table.arms]
    record = Record.read(table.name)
    runs = Runs(outputs.resolve(), table, record)
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
