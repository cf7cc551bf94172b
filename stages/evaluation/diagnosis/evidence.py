"""Evidence for a diagnosis: the manifests, curves, pairs and results of a run. No model is loaded."""

import re
from dataclasses import dataclass
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.compute as pc

from stages.evaluation.checked import GENERATED
from stages.evaluation.results import Results
from stages.store.manifest import Manifest
from stages.store.records import FILE_SAMPLERS, Candidate, Example, Pair, Records, load, open_table
from stages.store.sealed_json import load_json
from stages.store.workspace import read_curves


@dataclass(frozen=True)
class Evidence:
    """Metrics, settings, pairs, curves and results of one run. Of several rounds they are those of the last one, but
    `steps` and `trained_pairs` count all. `drawn`: candidates were sampled here, not read from a file. `settings`:
    those of DPO. `curve`: the points of DPO's training. `lengths`: tokens of chosen and rejected, by pair.
    `held_out_tokens`: the mean length of held-out chosen completions, or NaN. `prompts`: the pool's prompts by id."""

    label_metrics: dict[str, Any]
    drawn: bool
    sft_trained: bool
    pair_metrics: dict[str, Any]
    dpo_metrics: dict[str, Any]
    steps: int
    trained_pairs: int
    settings: dict[str, Any]
    results: Results
    curve: list[dict[str, Any]]
    pairs: list[Pair]
    lengths: list[tuple[int, int]]
    held_out_tokens: float
    prompts: dict[str, Example]

    @property
    def more_prompts(self) -> str:
        """Return the advice for more prompts: the setting or file that they come from."""
        if not self.drawn:
            return "more rows in the file of preferences or candidates"
        generated = all(e.source in GENERATED for e in self.prompts.values())
        return (
            "more data.tasks.preference"
            if generated
            else "more rows of data.sources for preference"
        )

    def trained(self, metric: str) -> float | None:
        """A metric's mean over the last quarter of the training steps; None if it was not logged."""
        values = [point[metric] for point in self.curve if metric in point]
        recent = values[-max(1, len(values) // 4) :]
        return sum(recent) / len(recent) if recent else None

    def held_out(self, metric: str) -> tuple[float, float] | None:
        """A metric on held-out pairs before the first step and after the last; None if it was not evaluated."""
        values = [point[f"eval_{metric}"] for point in self.curve if f"eval_{metric}" in point]
        return (values[0], values[-1]) if len(values) > 1 else None


def gather_evidence(
    inputs: dict[str, Path], nodes: dict[str, Manifest], results: Results, pairs: list[Pair]
) -> Evidence:
    """Gather the evidence from a report's inputs by role. `pairs`: the pairs of its last round."""
    policy = nodes["eval"]["inputs"]["policy"]["stage"]
    if "reference" in inputs:
        lengths = token_counts(inputs["reference"] / "logprobs.parquet")
    else:  # SimPO has none
        ids = ((p.id, p.chosen_token_ids, p.rejected_token_ids) for p in pairs)
        lengths = {
            name: (len(chosen), len(rejected))
            for name, chosen, rejected in ids
            if chosen and rejected
        }
    rounds = [
        node["metrics"] for role, node in nodes.items() if re.fullmatch(rf"{policy}(_\d+)?", role)
    ]
    held_out = {row["id"] for row in load_json(inputs[policy] / "held_out.json", list)}
    return Evidence(
        label_metrics=nodes["label"]["metrics"],
        drawn=not {*Records(inputs["label"] / "candidates.parquet", Candidate).column("sampler")}
        <= {*FILE_SAMPLERS},
        sft_trained=nodes["sft"]["settings"].get("train", True),
        pair_metrics=nodes["pairs"]["metrics"],
        dpo_metrics=nodes[policy]["metrics"],
        steps=sum(metrics["steps"] for metrics in rounds),
        trained_pairs=sum(metrics["pairs"] for metrics in rounds),
        settings=nodes[policy]["config"],
        results=results,
        curve=read_curves(inputs[policy]),
        pairs=pairs,
        lengths=[*lengths.values()],
        held_out_tokens=fmean(
            [chosen for pair, (chosen, _) in lengths.items() if pair in held_out] or [nan]
        ),
        prompts={e.id: e for e in load(inputs["label"] / "prompts.parquet", Example)},
    )


def token_counts(path: Path) -> dict[str, tuple[int, int]]:
    """Read the counts of scored tokens of chosen and rejected by pair id from a table of PairLogProbs: only the length
    of its lists, which may hold millions of numbers. Raise Damaged for a file that the stage did not write."""
    with open_table(path) as file:
        table = file.read(columns=["id", "chosen_logps", "rejected_logps"])
        chosen, rejected = (
            pc.list_value_length(table[name]).to_pylist() for name in table.column_names[1:]
        )
        return dict(zip(table["id"].to_pylist(), zip(chosen, rejected, strict=True), strict=True))
