"""Trainings of the store that nothing evaluated yet, side by side: SFT by its loss on validation rows, DPO by the
share of held-out pairs that it orders rightly."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from stages.commands.comparing.measured import Key, input_key, sound
from stages.commands.settings import Differing, Nodes, lineage, of_lineage, unseeded
from stages.evaluation.choosing import Contender, compared, conclusion
from stages.store.kept import load_json
from stages.store.store import Manifest, Store


@dataclass
class Run:
    """`right`: of a preference objective, by held-out pair, whether chosen has the higher reward."""

    stage: str
    fingerprint: str
    rows: tuple[str, ...]  # whose losses compare
    settings: dict[str, str]
    loss: float
    seconds: float
    right: dict[str, bool]


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
    def right(self) -> dict[str, float]:
        """By held-out pair, the share of runs that order it rightly."""
        return {pair: fmean(run.right[pair] for run in self.runs) for pair in self.runs[0].right}

    @property
    def accuracy(self) -> float:
        return fmean(self.right.values())


@dataclass
class Trainings:
    """Of one stage, on the same held-out rows, the best first."""

    trainings: list[Training]

    @property
    def title(self) -> str:
        first = self.trainings[0].runs[0]
        of = "DPO" if first.stage == "dpo" else "Control" if "control.control" in first.settings else "SFT"
        return f"{len(self.trainings)} trainings of {of}"

    @property
    def by_pairs(self) -> bool:
        return bool(self.trainings[0].right)

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
        """Which is best, and for pairs whether that is more than chance; a loss is one number without an interval."""
        names, first = [line or "what most have" for line in self.lines], self.trainings[0]
        if not self.by_pairs:
            return (
                f"Of {len(names)} settings, {names[0]} has the lowest validation loss: {first.loss:.4f}, the next "
                f"{self.trainings[1].loss:.4f}; whether that is chance is not known."
            )
        ids = sorted(first.right)
        outcomes = np.array([[t.right[i] for t in self.trainings] for i in ids])
        comparison = compared(outcomes, [""] * len(ids))
        models = [Contender(name, t.accuracy) for name, t in zip(names, self.trainings, strict=True)]
        return conclusion(models, f"orders {{}} of {len(ids)} held-out pairs rightly", comparison)


def trainings(store: Store, nodes: Nodes, wanted: Callable[[Key], bool]) -> list[Trainings]:
    """Those of two or more that compare, where no evaluation in the store is about one of them."""
    evaluated = {input_key(m, role) for (stage, _), (_, m) in nodes.items() if stage == "eval" for role in m["inputs"]}
    groups: dict[tuple[str, ...], dict[Any, list[Run]]] = {}
    fresh = set[tuple[str, ...]]()
    for key, (_, manifest) in nodes.items():
        if (
            key[0] in ("sft", "dpo")
            and "eval_loss" in manifest["metrics"]
            and wanted(key)
            and sound(store, nodes, key)
        ):
            run = read(nodes, key)
            alike = tuple(sorted(unseeded(run.settings).items()))
            groups.setdefault(run.rows, {}).setdefault(alike, []).append(run)
            fresh |= set() if key in evaluated else {run.rows}
    found = {rows: [Training(runs) for runs in alike.values()] for rows, alike in groups.items() if rows in fresh}
    best_first = lambda t: (-t.accuracy if t.right else 0.0, t.loss)
    return [Trainings(sorted(those, key=best_first)) for those in found.values() if len(those) > 1]


def read(nodes: Nodes, key: Key) -> Run:
    folder, manifest = nodes[key]
    above = lineage(nodes, key)
    margins = load_json(folder / "held_out.json", list) if key[0] == "dpo" else []
    return Run(
        stage=key[0],
        fingerprint=key[1],
        rows=(key[0], *same_rows(manifest)),
        settings=of_lineage(above),
        loss=float(manifest["metrics"]["eval_loss"]),
        seconds=sum(m["wall_seconds"] for m in above),
        right={pair["id"]: pair["margin"] > 0 for pair in margins},
    )


def same_rows(manifest: Manifest) -> list[str]:
    """What makes losses and accuracies comparable: the same pairs; or the same data, read by the same tokenizer."""
    if manifest["stage"] == "dpo":
        return [input_key(manifest, "pairs")[1]]
    template = str(manifest["settings"]["template"])
    return [input_key(manifest, "data")[1], input_key(manifest, "base")[1], template]
