"""Trainings of the store that nothing evaluated yet, side by side: SFT by its loss on validation rows, DPO and
reward models by the share of held-out pairs that they order rightly."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from stages.commands.comparing.measured import Key, input_key, sound
from stages.commands.node_settings import Differing, Nodes, flat, lineage, of_lineage, unseeded
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Reads
from stages.evaluation.best_model import Comparison, Contender, compared, conclusion, of_others
from stages.evaluation.intervals import Interval
from stages.store.manifest import Manifest
from stages.store.numbers import points, signed
from stages.store.sealed_json import load_json
from stages.store.store import Store

OF_PAIRS = [name for name, objective in OBJECTIVES.items() if objective.reads is Reads.pairs]


@dataclass
class Run:
    """`held_out`: of what learns from pairs, by held-out pair, whether chosen has the higher reward; of SFT by
    validation row, its loss. None where the node is of a time when that was not kept. `measure`: what the loss is."""

    stage: str
    fingerprint: str
    rows: tuple[str, ...]  # the same for runs that compare
    measure: tuple[str, ...]  # the same for runs whose losses compare
    settings: dict[str, str]
    loss: float
    seconds: float
    held_out: dict[str, float]


@dataclass
class Training:
    """Runs that differ in their seeds alone."""

    runs: list[Run]

    @property
    def settings(self) -> dict[str, str]:
        return unseeded(self.runs[0].settings)

    @property
    def loss(self) -> float:
        return fmean(run.loss for run in self.runs)

    @property
    def seconds(self) -> float:
        return sum(run.seconds for run in self.runs)

    @property
    def held_out(self) -> dict[str, float]:
        """By held-out row, the mean over runs; none where they did not read the same ones."""
        rows = self.runs[0].held_out
        if any(run.held_out.keys() != rows.keys() for run in self.runs):
            return {}
        return {row: fmean(run.held_out[row] for run in self.runs) for row in rows}

    @property
    def accuracy(self) -> float:
        """The share of held-out pairs that it orders rightly."""
        return fmean(self.held_out.values())


@dataclass
class Trainings:
    """Of one stage, on the same held-out rows, the best first."""

    trainings: list[Training]

    @property
    def title(self) -> str:
        first = self.trainings[0].runs[0]
        of = "Control" if "control.control" in first.settings else OBJECTIVES[first.stage].title
        return f"{len(self.trainings)} trainings of {of}"

    @property
    def by_pairs(self) -> bool:
        return self.trainings[0].runs[0].stage in OF_PAIRS

    @property
    def by_loss(self) -> bool:
        """True where the losses compare."""
        return len({run.measure for training in self.trainings for run in training.runs}) == 1

    @property
    def differing(self) -> Differing:
        return Differing([t.settings for t in self.trainings])

    @property
    def usual(self) -> dict[str, str]:
        return self.differing.usual

    @property
    def lines(self) -> list[str]:
        """The settings of each, as far as they differ from most."""
        return self.differing.lines

    @property
    def sentence(self) -> str:
        """Which is best, and whether that is more than chance."""
        names, first = [line or "what most have" for line in self.lines], self.trainings[0]
        if self.by_pairs:
            models = [Contender(name, t.accuracy) for name, t in zip(names, self.trainings, strict=True)]
            does = f"orders {{}} of {len(first.held_out)} held-out pairs rightly"
            return conclusion(models, does, self.comparison)
        chance = "whether that is chance is not known"
        if self.comparison:
            chance = of_others(self.comparison, 0, [*range(len(names))])
        return (
            f"Of {len(names)} settings, {names[0]} has the lowest validation loss: {first.loss:.4f}, the next "
            f"{self.trainings[1].loss:.4f}; {chance}."
        )

    @cached_property
    def comparison(self) -> Comparison | None:
        """Of what came of every held-out row, more of which is better; None where they did not read the same ones."""
        each = [training.held_out for training in self.trainings]
        if not each[0] or any(its.keys() != each[0].keys() for its in each):
            return None
        outcomes, alike = np.array([[its[row] for its in each] for row in each[0]]), [""] * len(each[0])
        return compared(outcomes, alike) if self.by_pairs else compared(-outcomes, alike, shares=False)

    @property
    def behind(self) -> list[Interval | None]:
        """How far each is from the first, in pairs ordered rightly or in loss, corrected for all that stand here."""
        if self.comparison is None:
            return [None] * len(self.trainings)
        found = [self.comparison.between(0, i) for i in range(1, len(self.trainings))]
        return [None, *(each if self.by_pairs else Interval(-each.mean, -each.high, -each.low) for each in found)]

    def shown(self, difference: float) -> str:
        """In points, or in nats per token."""
        return points(difference) if self.by_pairs else signed(difference, "{:+z.4f}")


def trainings(store: Store, nodes: Nodes, wanted: Callable[[Key], bool]) -> list[Trainings]:
    """Those of two or more that compare, where no evaluation in the store is about one of them."""
    evaluated = {
        input_key(m, role)
        for (stage, _), (_, m) in nodes.items()
        if stage == "eval" and m["metrics"]["pass_rate"]
        for role in m["inputs"]
    }
    groups: dict[tuple[str, ...], dict[Any, list[Run]]] = {}
    fresh = set[tuple[str, ...]]()
    for key, (_, manifest) in nodes.items():
        if key[0] in OBJECTIVES and "eval_loss" in manifest["metrics"] and wanted(key) and sound(store, nodes, key):
            run = read(nodes, key)
            alike = tuple(sorted(unseeded(run.settings).items()))
            groups.setdefault(run.rows, {}).setdefault(alike, []).append(run)
            fresh |= set() if key in evaluated else {run.rows}
    found = {rows: [Training(runs) for runs in alike.values()] for rows, alike in groups.items() if rows in fresh}
    return [best_first(Trainings(those)) for those in found.values() if len(those) > 1]


def best_first(group: Trainings) -> Trainings:
    """Return the trainings by their share of pairs in order, then by loss, each where it compares."""
    rank = lambda t: (-t.accuracy if group.by_pairs else 0.0, t.loss if group.by_loss else 0.0)
    return Trainings(sorted(group.trainings, key=rank))


def read(nodes: Nodes, key: Key) -> Run:
    folder, manifest = nodes[key]
    above = lineage(nodes, key)
    kept = folder / "held_out.json"
    held_out = load_json(kept, list) if kept.exists() else []
    return Run(
        stage=key[0],
        fingerprint=key[1],
        rows=(key[0], *same_rows(manifest)),
        measure=loss_of(manifest),
        settings=of_lineage(above),
        loss=float(manifest["metrics"]["eval_loss"]),
        seconds=sum(m["wall_seconds"] for m in above),
        held_out={row["id"]: came_to(row) for row in held_out},
    )


def came_to(row: dict[str, Any]) -> float:
    """Whether chosen has the higher reward, by DPO's margin or by both rewards; of SFT the loss."""
    if "loss" in row:
        return float(row["loss"])
    return float((row["margin"] if "margin" in row else row["chosen"] - row["rejected"]) > 0)


def same_rows(manifest: Manifest) -> list[str]:
    """What makes trainings comparable: the same pairs; or the same data, read by the same tokenizer, and loss."""
    if manifest["stage"] in OF_PAIRS:
        return [input_key(manifest, "pairs")[1]]
    template = str(manifest["settings"]["template"])
    return [input_key(manifest, "data")[1], input_key(manifest, "base")[1], template, *loss_of(manifest)]


def loss_of(manifest: Manifest) -> tuple[str, ...]:
    """Return what a training's loss is: its settings, and of DPO the reference."""
    settings = flat(manifest["settings"])
    reference = [input_key(manifest, "reference")[1]] if "reference" in manifest["inputs"] else []
    return (*(str(settings.get(key)) for key in OBJECTIVES[manifest["stage"]].of_loss), *reference)
