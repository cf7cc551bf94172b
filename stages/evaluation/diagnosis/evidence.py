"""What a run left behind of itself, as its diagnosis reads it: manifests, curves, pairs and results. No model is
loaded."""

from dataclasses import dataclass
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.evaluation.checked import GENERATED
from stages.store.manifest import Manifest
from stages.store.records import GIVEN, Candidate, Example, Pair, Records, load
from stages.store.sealed_json import WRONG_SHAPE, Damaged, load_json
from stages.store.workspace import read_curves


@dataclass(frozen=True)
class Evidence:
    """Metrics of `label`, `pairs` and `dpo`, the last with its `settings`; results of the evaluation.

    `drawn`: whether candidates were drawn here, and are not somebody's. `sft_trained`: whether SFT was trained here.
    `curve` holds the points of DPO's training, `lengths` tokens of chosen and of rejected by pair, `held_out_tokens`
    the mean of held-out chosen completions, `prompts` those of the judged pool by id.
    """

    label: dict[str, Any]
    drawn: bool
    sft_trained: bool
    made: dict[str, Any]
    dpo: dict[str, Any]
    settings: dict[str, Any]
    results: dict[str, Any]
    curve: list[dict[str, Any]]
    pairs: list[Pair]
    lengths: list[tuple[int, int]]
    held_out_tokens: float
    prompts: dict[str, Example]

    @property
    def more_prompts(self) -> str:
        """Return what more prompts come from."""
        if not self.drawn:
            return "more rows in the file of preferences or candidates"
        generated = all(e.source in GENERATED for e in self.prompts.values())
        return "more data.tasks.preference" if generated else "more rows of data.sources for preference"

    def trained(self, metric: str) -> float | None:
        """A metric's mean over the last quarter of the training steps; None where it was not logged."""
        found = [point[metric] for point in self.curve if metric in point]
        recent = found[-max(1, len(found) // 4) :]
        return sum(recent) / len(recent) if recent else None

    def held_out(self, metric: str) -> tuple[float, float] | None:
        """A metric on held-out pairs before the first step and after the last; None where it was not evaluated."""
        found = [point[f"eval_{metric}"] for point in self.curve if f"eval_{metric}" in point]
        return (found[0], found[-1]) if len(found) > 1 else None


def gather(
    inputs: dict[str, Path], nodes: dict[str, Manifest], results: dict[str, Any], pairs: list[Pair]
) -> Evidence:
    """The evidence of a report's inputs by role. `pairs`: those of its last round, as they are loaded already."""
    policy = nodes["eval"]["inputs"]["policy"]["stage"]
    lengths = token_counts(inputs["reference"] / "logprobs.parquet")
    held_out = {row["id"] for row in load_json(inputs[policy] / "held_out.json", list)}
    return Evidence(
        label=nodes["label"]["metrics"],
        drawn=not {*Records(inputs["label"] / "candidates.parquet", Candidate).column("sampler")} <= {*GIVEN},
        sft_trained=nodes["sft"]["settings"].get("train", True),
        made=nodes["pairs"]["metrics"],
        dpo=nodes[policy]["metrics"],
        settings=nodes[policy]["config"],
        results=results,
        curve=read_curves(inputs[policy]),
        pairs=pairs,
        lengths=[*lengths.values()],
        held_out_tokens=fmean([chosen for pair, (chosen, _) in lengths.items() if pair in held_out] or [nan]),
        prompts={e.id: e for e in load(inputs["label"] / "prompts.parquet", Example)},
    )


def token_counts(path: Path) -> dict[str, tuple[int, int]]:
    """Tokens of chosen and of rejected by pair, of a table of PairLogProbs, whose lists are not read: there may be
    millions of numbers in them.

    Raises:
        Damaged: for a file that the stage did not write.
    """
    try:
        table = pq.read_table(path, columns=["id", "chosen_ids", "rejected_ids"])
        chosen, rejected = (pc.list_value_length(table[name]).to_pylist() for name in ("chosen_ids", "rejected_ids"))
        return dict(zip(table["id"].to_pylist(), zip(chosen, rejected, strict=True), strict=True))
    except (pa.ArrowException, OSError, *WRONG_SHAPE) as error:
        raise Damaged(path, error) from error
