"""Compare the expected memory of nodes with the memory they used: `python -m tests.bench.memory [KEY=VALUE …]`.

SFT, reference and DPO of the demo's model on a few rows of random words, with all weights and with an adapter, with
and without gradient checkpointing; each in a process of its own.
"""

import json
import logging
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

from stages.cli.compose import resolve_precision
from stages.commands.planning.peak import block_peak
from stages.hardware import process
from stages.hardware.model_shape import ModelShape
from stages.pipeline.graph import wire_graph
from stages.preflight.model_files import model_config
from stages.store.node import Node
from stages.store.records import PairLogProbs, load
from stages.store.store import Store
from stages.tasks.words import JOBS, TOOLS
from tests.helpers import ROOT, settings

ROWS, WORDS = 18, 80
VARIANTS = {
    "full": [],
    "full, selective": ["{}.runtime.gradient_checkpointing=selective"],
    "full, checkpointing": ["{}.runtime.gradient_checkpointing=full"],
    "lora": ["{}.adapter=lora"],
    "lora, checkpointing": ["{}.adapter=lora", "{}.runtime.gradient_checkpointing=full"],
}
DATA = "sft preference validation test unseen_phrasings unseen_tasks rephrased".split()
COMMON = ["tracker=none", "label=dataset", "pairs=all", *(f"data.tasks.{group}=0" for group in DATA)]
COMMON += ["sft.packing=false", *(f"{stage}.batch_size=8" for stage in ("sft", "dpo"))]
COMMON += [f"{stage}.runtime.micro_batch=4" for stage in ("sft", "dpo")]


def main(overrides: list[str]) -> None:
    logging.info("%-26s %10s %10s", "", "expected", "measured")
    with tempfile.TemporaryDirectory() as folder:
        common = [*COMMON, *write(Path(folder)), f"outputs={folder}/outputs", *overrides]
        for name, variant in VARIANTS.items():
            compare(f"sft, {name}", "sft", [*common, *(key.format("sft") for key in variant)])
            compare(f"dpo, {name}", "dpo", [*common, *(key.format("dpo") for key in variant)])
        compare("reference", "reference", common)


def write(folder: Path) -> list[str]:
    """Examples and pairs that are all of one length, and the settings that name them."""
    draw = random.Random(0)
    text = lambda words: " ".join(draw.choices(TOOLS + JOBS, k=words))
    examples = [{"prompt": text(WORDS), "completion": text(2 * WORDS)} for _ in range(ROWS)]
    pairs = [{"prompt": text(WORDS), "chosen": text(WORDS), "rejected": text(WORDS)} for _ in range(ROWS)]
    for name, rows in (("examples", examples), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = f"data.sources=[{{path: {folder}/examples.jsonl, splits: {{sft: 1.0}}}}]"
    return [source, f"label.path={folder}/pairs.jsonl"]


def compare(name: str, stage: str, overrides: list[str]) -> None:
    """Build what a node needs in one process and the node, anew, in another."""
    cfg = settings(*overrides)
    resolve_precision(cfg)
    nodes = wire_graph(cfg, Path(cfg.outputs) / "cache" / "digests.json")
    node, store = nodes[stage], Store(Path(cfg.outputs))
    for target in (*node.inputs.values(), node):
        rebuild = [f"rebuild={stage}"] if target is node else []
        command = [sys.executable, "run.py", f"stage={target.stage}", *overrides, *rebuild]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    manifest = store.find(node)
    config = model_config(cfg.model, store.folder(nodes["base"]) / "model")
    assert manifest is not None and config is not None
    gpu = manifest["peak_gpu_memory"]
    expected = block_peak(
        ModelShape.from_config(config), node.config, row_tokens(node, store), "cuda" if gpu else "cpu"
    )
    measured = gpu or manifest["peak_memory"]
    megabytes = (expected / 2**20, measured / 2**20)
    logging.info("%-26s %6.0f MiB %6.0f MiB  %+.0f%%", name, *megabytes, 100 * (expected / measured - 1))


def row_tokens(node: Node, store: Store) -> float:
    """The tokens of an example, or of a pair whose prompt is read once."""
    if node.stage == "sft":
        metrics = store.manifests("sft")[-1][1]["metrics"]
        return float(metrics["tokens"] / metrics["rows"] / node.config.epochs)
    reference = node if node.stage == "reference" else node.inputs["reference"]
    scored = load(store.folder(reference) / "logprobs.parquet", PairLogProbs)
    return mean(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in scored)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    process.prepare()
    main(sys.argv[1:])
