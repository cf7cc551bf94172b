"""SFT on real rows as they are, and on what an audit leaves of them: `python -m tests.bench.audited [OUTPUTS]
[KEY=VALUE …]`.

Rows of the original Alpaca, half of them of its known classes of error. The audit mends what can be mended in one way,
and drops every other row in which a code finds something, and copies. Both train as many optimizer steps with the same
seed and settings, so that the second sees its fewer rows more often. Compared are the answers to held-out open
requests by their checks, and the loss on held-out answers of revised Alpaca rows in which no code finds anything.

Needs the shared data beside the checkout; takes about 15 CPU-minutes. A try: `recipe=tiny answer.max_new_tokens=8`.
"""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.choices import AUDIT_FIXES, Role
from stages.curation.audit.codes import ALONE
from stages.evaluation.intervals import paired
from stages.pipeline.build import build
from stages.pipeline.graph import wire_graph
from stages.store.manifest import read_manifest
from stages.store.node import Node
from stages.store.store import Store
from tests.bench import chains
from tests.helpers import DATA

ROWS = 200  # of each file to learn from
ASKED = dict.fromkeys(SPLIT_OF_GROUP, 0) | {"unseen_kinds": 220, "unseen_areas": 80}
ACTIONS = {
    code: "fix" if code in AUDIT_FIXES else "drop"
    for code in (*ALONE, "duplicate", "near_duplicate")
}
TITLES = {Role.base: "Base", Role.sft: "SFT on all rows", Role.policy: "SFT on audited rows"}


def main(outputs: Path, overrides: list[str]) -> None:
    typed = {override.partition("=")[0] for override in overrides}
    own = [each for each in about(outputs) if each.partition("=")[0] not in typed]
    overrides = [*own, *overrides]
    cfg, store, nodes = chains.prepared(outputs, overrides)
    audit = replace(cfg.data.audit, actions=ACTIONS)
    audited_nodes = wire_graph(
        replace(cfg, data=replace(cfg.data, audit=audit)), store.digest_cache
    )
    build([nodes["data"], audited_nodes["data"]], store, cfg, overrides)
    raw, audited = nodes["sft"], as_long(audited_nodes["sft"], nodes["sft"], store)
    answer = replace(nodes["answer_sft"], inputs={**nodes["answer_sft"].inputs, "model": audited})
    before = nodes["eval"]
    inputs = {**before.inputs, str(Role.policy): audited, f"answer_{Role.policy}": answer}
    models = {str(role): title for role, title in TITLES.items()}
    compared = replace(before, config=replace(before.config, models=models), inputs=inputs)
    build([compared], store, cfg, overrides)
    tell(store, raw, audited, compared)


def about(outputs: Path) -> list[str]:
    """The settings. What is held out comes first: a prompt belongs to the source that has it first."""
    held_out = f"{{path: '{DATA / 'sft/alpaca_cleaned_first1000.jsonl.gz'}', rows: 96, splits: {{validation: 1.0}}}}"
    files = (DATA / "dirty/alpaca_dirty_classes.jsonl.gz", DATA / "sft/alpaca_8k.jsonl.gz")
    cut = [chains.first_rows(file, ROWS, outputs / "cache" / "audited") for file in files]
    sources = ", ".join([held_out, *(f"{{path: '{path}', splits: {{sft: 1.0}}}}" for path in cut)])
    counts = [f"data.tasks.{group}={count}" for group, count in ASKED.items()]
    sft = [
        "epochs=1",
        "batch_size=16",
        "packing=false",
        "runtime.micro_batch=auto",
        "evaluations=1",
    ]
    limits = ["data.max_bad=0.1", "answer.max_new_tokens=128"]  # some answers are empty
    return [
        "stage=sft",
        "recipe=short_tasks",
        "sft.max_length=1024",
        f"data.sources=[{sources}]",
        *counts,
        *limits,
        *(f"sft.{each}" for each in sft),
    ]


def rows(sft: Node, store: Store) -> int:
    return int(read_manifest(store.folder(sft.inputs["data"]))["metrics"]["examples"]["sft"])


def as_long(sft: Node, other: Node, store: Store) -> Node:
    """An SFT with as many optimizer steps as another has. Trainer rounds them up: half of one less is asked for."""
    size = other.config.batch_size
    steps = math.ceil(other.config.epochs * (rows(other, store) // size))
    return replace(
        sft, config=replace(sft.config, epochs=(steps - 0.5) / (rows(sft, store) // size))
    )


def tell(store: Store, raw: Node, audited: Node, compared: Node) -> None:
    manifests = [read_manifest(store.folder(node)) for node in (raw, audited)]
    for title, manifest in zip(("all rows", "audited"), manifests, strict=True):
        metrics: dict[str, Any] = manifest["metrics"]
        figures = {
            name: metrics[name]
            for name in ("rows", "steps", "tokens", "trained_tokens", "rows_unseen")
        }
        logging.info("%-9s %s, %.0f s", title, json.dumps(figures), manifest["wall_seconds"])
    before, after = (losses(store.folder(node)) for node in (raw, audited))
    both = sorted(before.keys() & after.keys())
    change = paired([before[i] for i in both], [after[i] for i in both])
    means = [sum(rates[i] for i in both) / len(both) for rates in (before, after)]
    logging.info("loss on %d held-out answers: %.4f, audited %.4f", len(both), *means)
    logging.info(
        "    audited less all rows %+.4f (%+.4f to %+.4f)", change.mean, change.low, change.high
    )
    results = json.loads((store.folder(compared) / "results.json").read_text())
    chains.tell(results)
    logging.info("%s", results["verdict"])


def losses(sft: Path) -> dict[str, float]:
    """The loss of every validation row at the step that was published."""
    return {row["id"]: row["loss"] for row in json.loads((sft / "held_out.json").read_text())}


if __name__ == "__main__":
    chains.run(main)
