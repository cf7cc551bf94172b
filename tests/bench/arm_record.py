"""What the arms of a table came to, in the files of tests/bench/outcomes/ that are committed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean

from stages.evaluation.outcomes import Outcome
from stages.store.records import load, save
from stages.store.table_schema import Int32
from tests.helpers import ROOT

RESULTS = ROOT / "tests" / "bench" / "outcomes"
DRAWS = 8  # answers to each validation prompt


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
