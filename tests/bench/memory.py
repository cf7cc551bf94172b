"""Compare the expected memory of trainings with the memory they used: `python -m tests.bench.memory [pretend] [only=REGEX]
[KEY=VALUE …]`.

SFT and DPO on a few rows of random words: all weights and an adapter, packed rows, gradient checkpointing, one process
and two. Each node is built in a process of its own. The last
column leaves out the libraries, which are a large part of a small model's process. With `pretend`, nodes run on the
pretended accelerator, which counts the bytes of its tensors, as the allocator of a GPU does; without it, on the CPU.
"""

import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

from stages.cli.compose import resolve_precision
from stages.commands.planning.peak import training_parts
from stages.config.schema import Config
from stages.hardware import machine, memory, process
from stages.hardware.model_shape import ModelShape
from stages.pipeline.graph import wire_graph
from stages.preflight.model_files import model_config
from stages.store.node import Node
from stages.store.records import PairLogProbs, load
from stages.store.store import Store
from stages.tasks.words import JOBS, TOOLS
from tests.helpers import ROOT, settings
from tests.pretend import device

ROWS, WORDS = 8, 80
TWO = ["{}.runtime.processes=2"]
SHARDED = ["launch=fsdp", "launch.processes=2"]
FULL = ["{}.runtime.gradient_checkpointing=full"]
LORA = ["{}.adapter=lora"]
CASES = {
    "sft": ("sft", []),
    "sft, packed": (
        "sft",
        ["sft.packing=true", "sft.max_length=448", "sft.batch_size=2", "sft.runtime.micro_batch=1"],
    ),
    "sft, checkpointing": ("sft", FULL),
    "sft, lora": ("sft", LORA),
    "sft, two processes": ("sft", TWO),
    "sft, lora, two processes": ("sft", LORA + TWO),
    "dpo": ("dpo", []),
    "dpo, selective checkpointing": ("dpo", ["{}.runtime.gradient_checkpointing=selective"]),
    "dpo, lora, checkpointing": ("dpo", LORA + FULL),
    "dpo, two processes": ("dpo", TWO),
    "dpo, checkpointing, two processes": ("dpo", FULL + TWO),
    "sft, sharded over two": ("sft", SHARDED),
    "sft, checkpointing, sharded over two": ("sft", FULL + SHARDED),
    "dpo, lora": ("dpo", LORA),
    "dpo, sharded over two": ("dpo", SHARDED),
}
# Model and rows on the pretended accelerator. SFT is packed, because padded rows have no flash attention there.
PRETENDED = ["model=tiny", "model.random_init.hidden_size=256", "model.random_init.layers=8"]
PRETENDED += ["sft.packing=true", "sft.max_length=1024", "sft.runtime.micro_batch=1"]
DATA = [
    "sft",
    "open_sft",
    "preference",
    "open_preference",
    "validation",
    "unseen_phrasings",
    "unseen_tasks",
    "rephrased",
]
COMMON = [
    "tracker=none",
    "label=dataset",
    "pairs=all",
    *(f"data.tasks.{group}=0" for group in DATA),
]
COMMON += [
    "data.tasks.test=24",
    "answer.runtime.batch_size=24",
    "sft.packing=false",
    "sft.demonstrations=given",
]
COMMON += [f"{stage}.batch_size=4" for stage in ("sft", "dpo")]
COMMON += [f"{stage}.runtime.micro_batch=2" for stage in ("sft", "dpo")]
COMMON += [f"{stage}.epochs=2" for stage in ("sft", "dpo")]  # the second step has Adam's moments


def main(arguments: list[str]) -> None:
    environment, chosen, common = dict(os.environ), ".", list(COMMON)
    if "pretend" in arguments:
        environment, common = device.environment(), COMMON + PRETENDED
        machine.planned_gpu.set(machine.GPU(device.NAME, 0.0, device.MEMORY))
    for argument in arguments:
        chosen = argument.removeprefix("only=") if argument.startswith("only=") else chosen
    overrides = [
        argument
        for argument in arguments
        if argument != "pretend" and not argument.startswith("only=")
    ]
    logging.info("%-38s %10s %10s %10s %10s", "", "expected", "measured", "", "libraries aside")
    with tempfile.TemporaryDirectory() as folder:
        common += [*write(Path(folder)), f"outputs={folder}/outputs", *overrides]
        for name, (stage, variant) in CASES.items():
            if re.search(chosen, name):
                compare(
                    name, stage, [*common, *(key.format(stage) for key in variant)], environment
                )


def write(folder: Path) -> list[str]:
    """Examples and pairs that are all of one length, and the settings that name them."""
    draw = random.Random(0)

    def text(words):
        return " ".join(draw.choices(TOOLS + JOBS, k=words))

    examples = [{"prompt": text(WORDS), "completion": text(WORDS)} for _ in range(ROWS)]
    pairs = [
        {"prompt": text(WORDS), "chosen": text(WORDS), "rejected": text(WORDS)} for _ in range(ROWS)
    ]
    for name, rows in (("examples", examples), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = f"data.sources=[{{path: {folder}/examples.jsonl, splits: {{sft: 1.0}}}}]"
    return [source, f"label.path={folder}/pairs.jsonl"]


def compare(name: str, stage: str, overrides: list[str], environment: dict[str, str]) -> None:
    """Build what a node needs in one process and the node, anew, in another."""
    cfg = settings(*overrides)
    resolve_precision(cfg)
    nodes = wire_graph(cfg, Path(cfg.outputs) / "cache" / "digests.json")
    node, store = nodes[stage], Store(Path(cfg.outputs))
    for target in (*(each for each in node.inputs.values() if not store.find(each)), node):
        rebuild = [f"rebuild={node.stage}"] if target is node else []
        command = [sys.executable, "run.py", f"stage={target.stage}", *overrides, *rebuild]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    manifest = store.find(node)
    assert manifest is not None
    gpu, expected = manifest["peak_gpu_memory"], planned_bytes(cfg, store, nodes, stage)
    measured, libraries = gpu or manifest["peak_memory"], 0.0 if gpu else memory.LIBRARIES
    megabytes = (expected / 2**20, measured / 2**20)
    shares = (
        100 * (expected / measured - 1),
        100 * ((expected - libraries) / (measured - libraries) - 1),
    )
    logging.info("%-38s %6.0f MiB %6.0f MiB %+9.0f%% %+9.0f%%", name, *megabytes, *shares)


def planned_bytes(cfg: Config, store: Store, nodes: dict[str, Node], stage: str) -> float:
    """Return what a finished training was expected to take on the device that it ran on."""
    node = nodes[stage]
    manifest, base = store.find(node), store.folder(nodes["base"]) / "model"
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
    reference = next(
        (each for each in (node, *node.inputs.values()) if each.stage == "reference"), None
    )
    if reference is None:
        return 4 * WORDS
    scored = load(store.folder(reference) / "logprobs.parquet", PairLogProbs)
    return mean(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in scored)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    process.prepare()
    main(sys.argv[1:])
