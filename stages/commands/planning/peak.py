"""The memory that a node takes at its peak: as it did, or by the shape of its model (stages/hardware/memory.py)."""

import math
from typing import Any

from stages.config.blocks.labels import Label
from stages.config.blocks.models import Model
from stages.config.blocks.training import SFT, Training
from stages.hardware import machine, memory, model_shape
from stages.hardware.model_shape import Shape
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.store import Store

OF_MEMORY = (
    "adapter",
    "lora",
    "precision",
    "weights",
    "packing",
    "max_length",
    "max_new_tokens",
    "batch_size",
    "runtime",
    "labeler",
    "reward_model",
)
OF_MAX_LENGTH = 0.5  # tokens of a row from a file, as a share of what may be
TOKENS_PER_ROW = {
    "sft": 60,
    "sample": 20,
    "reference": 80,
    "dpo": 80,
    "reward": 80,
    "answer": 60,
    "label": 60,
}  # of generated tasks, in memory
CADENCE = ("save_steps", "save_minutes")  # of `runtime`, which no memory depends on
LONGEST = 1.5  # times a row's tokens: a row of the micro-batch that needs most


def of_memory(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a node on which its memory depends."""
    settings = {key: config.get(key) for key in OF_MEMORY}
    runtime = settings["runtime"] or {}
    return settings | {"runtime": {key: value for key, value in runtime.items() if key not in CADENCE}}


def peak_of(manifest: Manifest) -> float:
    return float(manifest["peak_gpu_memory"] or manifest["peak_memory"])


def expected_peak(node: Node, nodes: dict[str, Node], shape: Shape | None) -> float:
    """Bytes, by the shape of the node's model; nan where that is not known."""
    if shape is None:
        return math.nan
    block, data, label = node.config, nodes["data"].config, nodes["label"].config
    longest = nodes["sft"].config.max_length
    row = LONGEST * TOKENS_PER_ROW.get(node.stage, 0)
    if data.sources or label.brings_pool:
        row = LONGEST * OF_MAX_LENGTH * longest
    if isinstance(block, Training):
        row = block.max_length if isinstance(block, SFT) and block.packing else min(row, block.max_length)
    return memory.peak(shape, block, row, "cuda" if on_gpu(node) else "cpu")


def on_gpu(node: Node) -> bool:
    """Whether the model of this node is on a GPU: where its `runtime` asks for one, or for whatever there is."""
    scores = isinstance(node.config, Label) and node.config.labelers == ["reward_model"]
    runtime = node.config.reward_model.runtime if scores else getattr(node.config, "runtime", None)
    if runtime is None or runtime.device == "cpu":
        return False
    return runtime.device == "cuda" or machine.gpu() is not None


def shape_of(node: Node, base: Node, store: Store) -> Shape | None:
    """Of a node's model: the base, but for a reward model of another. None where it is on the hub and not even its
    config can be had."""
    if isinstance(node.config, Label) and (path := node.config.reward_model.path):
        config = model_shape.config_of(Model(path, node.config.reward_model.revision))
    else:
        config = model_shape.config_of(base.config, store.folder(base) / "model")
    return Shape.of(config) if config else None
