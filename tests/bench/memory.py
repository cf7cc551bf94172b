"""Compare the expected memory of trainings with the memory they used: `python -m tests.bench.memory [KEY=VALUE …]`.

SFT and DPO on a few rows of random words: all weights and an adapter, gradient checkpointing. Each node
is built in a process of its own. The last column leaves out the libraries, which are a large part of a small model's
process.
"""

import json
import logging
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

from stages.cli.resolve import resolve_precision
from stages.config.schema import Config
from stages.extras.forecast.peak import training_parts
from stages.hardware import memory, process
from stages.hardware.model_shape import ModelShape
from stages.pipeline.graph import wire_graph
from stages.preflight.model_files import model_config
from stages.store.node import Node
from stages.store.records import PairLogProbs, load
from stages.store.store import Store
from stages.tasks.words import JOBS, TOOLS
from tests.helpers import ROOT, settings

ROWS = 8
WORDS = 80
LORA = "{}.adapter=lora"
FULL = "{}.runtime.gradient_checkpointing=full"
CASES = {
    "sft": ("sft", []),
    "sft, checkpointing": ("sft", [FULL]),
    "sft, lora": ("sft", [LORA]),
    "dpo": ("dpo", []),
    "dpo, lora": ("dpo", [LORA]),
    "dpo, lora, checkpointing": ("dpo", [LORA, FULL]),
}
DATA = ("sft", "open_sft", "preference", "open_preference", "validation", "test")
DATA += ("unseen_phrasings", "unseen_tasks", "rephrased")
COMMON = ["tracker=none", "label=dataset", "pairs=all", "sft.packing=false"]
COMMON += ["sft.demonstrations=given", *(f"data.tasks.{group}=0" for group in DATA)]
for stage_name in ("sft", "dpo"):
    COMMON += [f"{stage_name}.batch_size=4", f"{stage_name}.runtime.micro_batch=2"]
    COMMON += [f"{stage_name}.epochs=2"]  # the second step has Adam's moments


def main(arguments: list[str]) -> None:
    logging.info("%-28s %10s %10s %10s %15s", "", "expected", "measured", "", "libraries aside")
    with tempfile.TemporaryDirectory() as folder:
        common = [*COMMON, *write(Path(folder)), f"outputs={folder}/outputs", *arguments]
        for name, (stage, variant) in CASES.items():
            compare(name, stage, [*common, *(key.format(stage) for key in variant)])


def write(folder: Path) -> list[str]:
    """Examples and pairs that are all of one length, and the settings that name them."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(TOOLS + JOBS, k=WORDS))

    examples = list[str]()
    pairs = list[str]()
    for _ in range(ROWS):
        examples.append(json.dumps({"prompt": text(), "completion": text()}))
        pairs.append(json.dumps({"prompt": text(), "chosen": text(), "rejected": text()}))
    (folder / "examples.jsonl").write_text("\n".join(examples))
    (folder / "pairs.jsonl").write_text("\n".join(pairs))
    source = f"data.sources=[{{path: {folder}/examples.jsonl, splits: {{sft: 1.0}}}}]"
    return [source, f"label.path={folder}/pairs.jsonl"]


def compare(name: str, stage: str, overrides: list[str]) -> None:
    """Build what a node needs in one process and the node, anew, in another."""
    cfg = settings(*overrides)
    resolve_precision(cfg)
    nodes = wire_graph(cfg, Path(cfg.outputs) / "cache" / "digests.json")
    node = nodes[stage]
    store = Store(Path(cfg.outputs))
    missing = [each for each in node.inputs.values() if not store.find(each)]
    for target in (*missing, node):
        command = [sys.executable, "run.py", f"stage={target.stage}", *overrides]
        if target is node:
            command.append(f"rebuild={node.stage}")
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    manifest = store.find(node)
    assert manifest is not None
    expected = planned_bytes(cfg, store, nodes, stage)
    measured = manifest["peak_gpu_memory"] or manifest["peak_memory"]
    libraries = 0.0 if manifest["peak_gpu_memory"] else memory.LIBRARIES
    over = expected / measured
    over_alone = (expected - libraries) / (measured - libraries)
    figures = (expected / 2**20, measured / 2**20, 100 * (over - 1), 100 * (over_alone - 1))
    logging.info("%-28s %6.0f MiB %6.0f MiB %+9.0f%% %+14.0f%%", name, *figures)


def planned_bytes(cfg: Config, store: Store, nodes: dict[str, Node], stage: str) -> float:
    """Return what a finished training was expected to take on the device that it ran on."""
    node = nodes[stage]
    manifest = store.find(node)
    base = store.folder(nodes["base"]) / "model"
    config = model_config(cfg.model, base)
    assert manifest is not None and config is not None
    shape = ModelShape.from_config(config)
    assert shape is not None
    device = "cuda" if manifest["peak_gpu_memory"] else "cpu"
    return float(sum(training_parts(shape, node.config, row_tokens(node, store), device)))


def row_tokens(node: Node, store: Store) -> float:
    """The tokens of an example, of a full packed row, or of a pair whose prompt is read once."""
    if node.stage == "sft" and node.config.packing:
        return float(node.config.max_length)
    if node.stage == "sft":
        metrics = store.manifests("sft")[-1][1]["metrics"]
        return float(metrics["tokens"] / metrics["rows"] / node.config.epochs)
    scored = load(store.folder(node.inputs["reference"]) / "logprobs.parquet", PairLogProbs)
    return mean(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in scored)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    process.prepare()
    main(sys.argv[1:])
