"""The memory that a node takes at its peak: as it did, or by the shape of its model (stages/hardware/memory.py)."""

import math
from dataclasses import replace
from typing import Any

from stages.config.blocks.evaluation import Answer, Eval
from stages.config.blocks.labels import Label, RewardModel
from stages.config.blocks.models import Model
from stages.config.blocks.sampling import Sample
from stages.config.blocks.training import OBJECTIVES, SFT, Reference, Training
from stages.config.choices import Adapter, Precision, Weights
from stages.hardware import machine, memory
from stages.hardware.model_shape import ModelShape
from stages.preflight.model_files import config_of
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.store import Store

OF_MEMORY = [*"adapter lora precision weights packing max_length max_new_tokens batch_size runtime labeler".split()]
OF_MEMORY += ["reward_model"]
OF_MAX_LENGTH = 0.5  # tokens of a row from a file, as a share of what may be
TOKENS_PER_ROW = {"sample": 20, "reference": 80, "answer": 60, "label": 60}  # of generated tasks, in memory
TOKENS_PER_ROW |= {name: objective.row_tokens for name, objective in OBJECTIVES.items()}
CADENCE = ("save_steps", "save_minutes")  # of `runtime`, which no memory depends on
PREFILL_TOKENS = 8192  # stages/samplers/hf.py
LABELLED = 0.6  # share of a pair's tokens that the reference scores: completions
LONGEST = 1.5  # times a row's tokens: a row of the micro-batch that needs most


def of_memory(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a node on which its memory depends."""
    settings = {key: config.get(key) for key in OF_MEMORY}
    runtime = settings["runtime"] or {}
    return settings | {"runtime": {key: value for key, value in runtime.items() if key not in CADENCE}}


def peak_of(manifest: Manifest) -> float:
    return float(manifest["peak_gpu_memory"] or manifest["peak_memory"])


def expected_peak(node: Node, nodes: dict[str, Node], shape: ModelShape | None) -> float:
    """Bytes, by the shape of the node's model; nan where that is not known."""
    if shape is None:
        return math.nan
    block, data = node.config, nodes["data"].config
    brings = "label" in nodes and nodes["label"].config.brings_pool
    longest = nodes["sft"].config.max_length
    row = LONGEST * TOKENS_PER_ROW.get(node.stage, 0)
    if data.sources or brings:
        row = LONGEST * OF_MAX_LENGTH * longest
    if isinstance(block, Training):
        row = block.max_length if isinstance(block, SFT) and block.packing else min(row, block.max_length)
    return peak(shape, block, row, "cuda" if on_gpu(node) else "cpu")


def on_gpu(node: Node) -> bool:
    """Whether the model of this node is on a GPU: where its `runtime` asks for one, or for whatever there is."""
    scores = isinstance(node.config, Label) and node.config.labelers == ["reward_model"]
    runtime = node.config.reward_model.runtime if scores else getattr(node.config, "runtime", None)
    if runtime is None or runtime.device == "cpu":
        return False
    return runtime.device == "cuda" or machine.gpu() is not None


def shape_of(node: Node, base: Node, store: Store) -> ModelShape | None:
    """Of a node's model: the base, but for another's reward model. None where the hub does not give its config."""
    if isinstance(node.config, Label) and (path := node.config.reward_model.path):
        config = config_of(Model(path, node.config.reward_model.revision))
    else:
        config = config_of(base.config, store.folder(base) / "model")
    return ModelShape.of(config) if config else None


def scoring(shape: ModelShape, block: Reference, tokens: float, device: str) -> float:
    """Bytes at the peak of log-probs without gradients."""
    total = memory.weights(shape, block.weights) + memory.copies(shape, block.weights, block.precision)
    head = memory.head(shape, LABELLED * tokens, block.precision, device, False)
    return total + tokens * memory.passing(shape) + head


def rewarding(shape: ModelShape, block: RewardModel, row: float) -> float:
    """Bytes at the peak of rewards: the weights in the precision itself, without an LM head, and a batch of rows."""
    size = memory.element(block.precision or Precision.fp32)
    return replace(shape, tied=True).parameters * size + block.runtime.batch_size * row * memory.passing(shape)


def sampling(shape: ModelShape, block: Sample | Answer, length: float, device: str) -> float:
    """Bytes at the peak of generation: the weights in the precision itself; keys and values of all rows, `length`
    tokens each; and the larger of a step's logits and the prompts that are read at once."""
    size = memory.element(block.precision)
    rows = memory.decoded_at_once(shape, size, block.runtime.batch_size, length, device)
    cached = memory.cached(shape, size)
    prompts = min(PREFILL_TOKENS, rows * length) * (cached + memory.passing(shape))
    return shape.parameters * size + rows * length * cached + max(prompts, rows * shape.vocabulary * size)


def peak(shape: ModelShape, block: Any, row: float, device: str) -> float:
    """Bytes at the peak of a node whose rows have `row` tokens; a pair's are those of prompt and both completions."""
    total = memory.LIBRARIES if device == "cpu" else 0.0
    match block:
        case SFT(train=False) | Model():  # tensor by tensor, from file to file
            return total + memory.weights(shape, Weights.fp32)
        case Training():
            shape = memory.without_head(shape, block)
            needed = memory.training(shape, block, device, *memory.micro_batch(shape, block, row, device))
            if device == "cpu" and block.adapter is not Adapter.none:  # merged into fp32 weights, which are then saved
                needed = max(needed, memory.weights(shape, block.held) + 2 * memory.weights(shape, Weights.fp32))
            return total + needed
        case Reference():
            return total + scoring(shape, block, max(1, block.runtime.batch_size // 2) * row, device)
        case Sample() | Answer():
            return total + sampling(shape, block, row + block.max_new_tokens, device)
        case Label() if block.labelers == ["reward_model"]:
            return total + rewarding(shape, block.reward_model, row)
        case Eval():  # two models
            each = memory.weights(shape, Weights.fp32) + memory.copies(shape, Weights.fp32, block.precision)
            return total + 2 * each
    return total
