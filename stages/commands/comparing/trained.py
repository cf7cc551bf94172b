"""Compare trainings that no evaluation measured yet: SFT by its loss on validation rows, DPO and reward models by the
share of held-out pairs that they order correctly."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, nan
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from stages.commands import node_settings
from stages.commands.comparing.measured import Key, input_key, is_intact, mean_over_runs
from stages.commands.node_settings import (
    Nodes,
    SettingDifferences,
    lineage,
    lineage_settings,
    without_seeds,
)
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Reads
from stages.evaluation.best_model import (
    Comparison,
    Contender,
    compare_models,
    conclusion,
    rivals_clause,
)
from stages.evaluation.intervals import Interval
from stages.store.manifest import Manifest
from stages.store.numbers import points, signed
from stages.store.records import Pair, stream
from stages.store.sealed_json import load_json
from stages.store.single_completions import UnpairedPreference
from stages.store.store import Store

OF_PAIRS = [
    name
    for name, objective in OBJECTIVES.items()
    if objective.reads in (Reads.pairs, Reads.unpaired)
]


@dataclass
class TrainedRun:
    """A finished training. `held_out`: for each held-out pair, 1 if chosen has the higher reward, else 0; for SFT, the
    loss of each validation row. It is empty for nodes of earlier versions."""

    stage: str
    fingerprint: str
    rows_id: tuple[str, ...]  # equal for runs that can be compared
    loss_id: tuple[str, ...]  # the definition of the loss; equal if losses can be compared
    settings: dict[str, str]
    loss: float  # nan without evaluations
    seconds: float
    held_out: dict[str, float]
    table: Path | None  # with the prompts of held-out pairs or completions

    @property
    def prompts(self) -> dict[str, str]:
        """The prompt of every row in the table."""
        if self.table is None or not self.table.exists():
            return {}
        kind: Any = Pair if self.table.stem == "pairs" else UnpairedPreference
        return {row.id: row.prompt_id for row in stream(self.table, kind)}


@dataclass
class Training:
    """Runs that differ only in their seeds."""

    runs: list[TrainedRun]
    loss, seconds = map(mean_over_runs, ("loss", "seconds"))

    @property
    def settings(self) -> dict[str, str]:
        return without_seeds(self.runs[0].settings)

    @property
    def held_out(self) -> dict[str, float]:
        """The mean over runs for each held-out row; empty if runs read different rows."""
        rows = self.runs[0].held_out
        if any(run.held_out.keys() != rows.keys() for run in self.runs):
            return {}
        return {row: fmean(run.held_out[row] for run in self.runs) for row in rows}

    @property
    def accuracy(self) -> float:
        """The share of held-out pairs that are ordered correctly."""
        return fmean(self.held_out.values())


@dataclass
class Trainings:
    """Trainings of one stage on the same held-out rows, the best first."""

    trainings: list[Training]

    @property
    def title(self) -> str:
        first = self.trainings[0].runs[0]
        kind = "Control" if "control.control" in first.settings else OBJECTIVES[first.stage].title
        return f"{len(self.trainings)} trainings of {kind}"

    @property
    def by_pairs(self) -> bool:
        return self.trainings[0].runs[0].stage in OF_PAIRS

    @property
    def by_loss(self) -> bool:
        """True if all trainings have a loss, of one definition."""
        return (
            len(
                {
                    r.loss_id if isfinite(r.loss) else r.fingerprint
                    for t in self.trainings
                    for r in t.runs
                }
            )
            == 1
        )

    @property
    def differences(self) -> SettingDifferences:
        return SettingDifferences([t.settings for t in self.trainings])

    @property
    def lines(self) -> list[str]:
        """The settings of each training that differ from the common ones."""
        return self.differences.lines

    @property
    def sentence(self) -> str:
        """The sentence on the best training, and whether its lead may be chance."""
        names, first = [line or "the most common setting" for line in self.lines], self.trainings[0]
        if self.by_pairs:
            models = [
                Contender(name, t.accuracy) for name, t in zip(names, self.trainings, strict=True)
            ]
            does = f"orders {{}} of {len(first.held_out)} held-out pairs correctly"
            if OBJECTIVES[first.runs[0].stage].reads is Reads.unpaired:
                does = f"gives {{}} of {len(first.held_out)} held-out completions a reward of the right sign"
            return conclusion(models, does, self.comparison)
        unknown, comparison = "it is not known whether this is chance", self.comparison
        chance = rivals_clause(comparison, 0, [*range(len(names))]) if comparison else unknown
        lead = (
            f"Of {len(names)} settings, {names[0]} has the lowest validation loss: {first.loss:.4f}"
        )
        return f"{lead}. The next has {self.trainings[1].loss:.4f}; {chance}."

    @cached_property
    def comparison(self) -> Comparison | None:
        """The comparison by held-out row, or None if trainings read different rows. Losses are negated."""
        row_outcomes = [training.held_out for training in self.trainings]
        if not row_outcomes[0] or any(
            rows.keys() != row_outcomes[0].keys() for rows in row_outcomes
        ):
            return None
        outcomes = np.array([[rows[row] for rows in row_outcomes] for row in row_outcomes[0]])
        if not self.by_pairs:
            return compare_models(-outcomes, [""] * len(outcomes), shares=False)
        prompts = self.trainings[0].runs[0].prompts  # pairs of one prompt are one draw
        return compare_models(
            outcomes, [prompts.get(row, row) for row in row_outcomes[0]], drawn=True
        )

    @property
    def gaps(self) -> list[Interval | None]:
        """The gap of each training to the best, in correct pairs or in loss, with corrected intervals."""
        if self.comparison is None:
            return [None] * len(self.trainings)
        gaps = [self.comparison.corrected(0, i) for i in range(1, len(self.trainings))]
        return [
            None,
            *(gap if self.by_pairs else Interval(-gap.mean, -gap.high, -gap.low) for gap in gaps),
        ]

    def format_gap(self, difference: float) -> str:
        """Return a gap in percentage points, or a loss in nats per token."""
        return points(difference) if self.by_pairs else signed(difference, "{:+z.4f}")


def comparable_trainings(
    store: Store, nodes: Nodes, is_included: Callable[[Key], bool]
) -> list[Trainings]:
    """Return groups of two or more comparable trainings of which at least one is not evaluated."""
    # Evaluations without pass rates, or without SFT, are not compared themselves.
    evaluations = [
        m for (stage, _), (_, m) in nodes.items() if stage == "eval" and "sft" in m["inputs"]
    ]
    evaluated = {
        input_key(m, role) for m in evaluations if m["metrics"]["pass_rate"] for role in m["inputs"]
    }
    groups: dict[tuple[str, ...], dict[Any, list[TrainedRun]]] = {}
    unevaluated = set[tuple[str, ...]]()
    for key in nodes:
        if key[0] in ("sft", *OF_PAIRS) and is_included(key) and is_intact(store, nodes, key):
            run = read_run(nodes, key)
            if not (run.held_out if key[0] in OF_PAIRS else isfinite(run.loss)):
                continue  # nothing was held out
            settings = tuple(sorted(without_seeds(run.settings).items()))
            groups.setdefault(run.rows_id, {}).setdefault(settings, []).append(run)
            unevaluated |= set() if key in evaluated else {run.rows_id}
    fresh = [
        by_settings
        for rows, by_settings in groups.items()
        if rows in unevaluated and len(by_settings) > 1
    ]
    return [
        best_first(Trainings([Training(runs) for runs in by_settings.values()]))
        for by_settings in fresh
    ]


def best_first(group: Trainings) -> Trainings:
    """Sort trainings by their share of correct pairs, then by loss if losses can be compared."""

    def rank(training: Training) -> tuple[float, float]:
        accuracy = training.accuracy if group.by_pairs else 0.0
        loss = training.loss if group.by_loss else 0.0
        return -accuracy, loss

    return Trainings(sorted(group.trainings, key=rank))


def read_run(nodes: Nodes, key: Key) -> TrainedRun:
    (folder, manifest), ancestors = nodes[key], lineage(nodes, key)
    held_out = load_json(file, list) if (file := folder / "held_out.json").exists() else []
    rows = next((role for role in ("pairs", "unpaired") if role in manifest["inputs"]), None)
    source = nodes.get(input_key(manifest, rows)) if rows else None
    return TrainedRun(
        stage=key[0],
        fingerprint=key[1],
        rows_id=(key[0], *comparison_key(manifest)),
        loss_id=loss_definition(manifest),
        settings=lineage_settings(ancestors),
        loss=float(manifest["metrics"].get("eval_loss", nan)),
        seconds=sum(m["wall_seconds"] for m in ancestors),
        held_out={row["id"]: row_outcome(row) for row in held_out},
        table=source[0] / f"{rows}.parquet" if source else None,
    )


def row_outcome(row: dict[str, Any]) -> float:
    """Return 1 if chosen has the higher reward, or a reward its label's sign, else 0; for SFT the loss of the row."""
    if "loss" in row:
        return float(row["loss"])
    if "desirable" in row:
        return float((row["reward"] > 0) == row["desirable"])
    return float((row["margin"] if "margin" in row else row["chosen"] - row["rejected"]) > 0)


def comparison_key(manifest: Manifest) -> list[str]:
    """Return the ids that comparable trainings share: the pairs; or data, base, template and loss definition."""
    if manifest["stage"] in OF_PAIRS:
        return [input_key(manifest, "pairs" if "pairs" in manifest["inputs"] else "unpaired")[1]]
    template = str(manifest["settings"]["template"])
    return [
        input_key(manifest, "data")[1],
        input_key(manifest, "base")[1],
        template,
        *loss_definition(manifest),
    ]


def loss_definition(manifest: Manifest) -> tuple[str, ...]:
    """Return the definition of a training's loss: the settings that define it, and for DPO the reference."""
    settings = {
        key: value for key, value, _ in node_settings.named_settings(manifest["settings"], None)
    }
    reference = [input_key(manifest, "reference")[1]] if "reference" in manifest["inputs"] else []
    return (*(str(settings.get(key)) for key in OBJECTIVES[manifest["stage"]].of_loss), *reference)
