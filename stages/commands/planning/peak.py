"""Predict a node's peak memory from the shape of its model (stages/hardware/memory.py)."""

from dataclasses import replace
from typing import Any

from stages.config.blocks.evaluation import Answer, Eval
from stages.config.blocks.labels import RewardModel
from stages.config.blocks.models import Model
from stages.config.blocks.sampling import Drawn
from stages.config.blocks.training import GRPO, OBJECTIVES, SFT, Reference, Training, Untrained
from stages.config.choices import Precision, Weights
from stages.hardware import machine, memory
from stages.hardware.memory import Parts
from stages.hardware.model_shape import ModelShape
from stages.preflight.model_files import model_config
from stages.store.node import Node
from stages.store.store import Store

OF_MAX_LENGTH = 0.5  # mean tokens of a file's row, as a share of max_length
# tokens per row of generated tasks
TOKENS_PER_ROW = {"sample": 20, "reference": 80, "answer": 60, "label": 60}
TOKENS_PER_ROW |= {name: objective.row_tokens for name, objective in OBJECTIVES.items()}
PREFILL_TOKENS = 8192  # stages/samplers/hf.py
LABELLED = 0.6  # share of completion tokens in a pair, which the reference scores
MAX_LENGTH = 1024  # tokens of a row where nothing is trained
LONGEST = 1.5  # factor from a mean row to the longest row of the largest micro-batch


def expected_parts(node: Node, nodes: dict[str, Node], shape: ModelShape) -> Parts:
    """Return the parts of a node's predicted peak."""
    device = "cuda" if uses_gpu(node) else "cpu"
    return block_parts(shape, node.config, longest_row(node, nodes), device)


def longest_row(node: Node, nodes: dict[str, Node]) -> float:
    """Return the tokens of the longest row in a node's largest micro-batch: from typical rows of generated tasks, or
    for files from a share of the longest row that is trained."""
    block = node.config
    mean = TOKENS_PER_ROW.get(node.stage, 0.0)
    reads_preferences = "label" in nodes and nodes["label"].config.brings_pool
    if nodes["data"].config.sources or reads_preferences:
        mean = OF_MAX_LENGTH * trained_length(nodes)
    if not isinstance(block, Training):
        return LONGEST * mean
    if isinstance(block, SFT) and block.packing:
        return block.max_length
    return min(LONGEST * mean, block.max_length)


def trained_length(nodes: dict[str, Node]) -> int:
    """Return the most tokens of a row that SFT is trained on, or without SFT a later training."""
    for node in (nodes["sft"], *nodes.values()):
        if isinstance(node.config, Training):
            return node.config.max_length
    return MAX_LENGTH


def uses_gpu(node: Node) -> bool:
    """Return whether the model of this node runs on a GPU, by its `runtime` and this machine."""
    device = getattr(getattr(node.config, "runtime", None), "device", "cpu")
    return device == "cuda" or (device == "auto" and machine.gpu() is not None)


def model_shape(node: Node, nodes: dict[str, Node], store: Store) -> ModelShape | None:
    """Return the shape of the base model, or of a reward model; None if the hub has no config for it."""
    block = node.config
    if isinstance(block, RewardModel) and block.path:
        config = model_config(Model(block.path, block.revision))
    else:
        bases = [each for each in node.lineage if each.stage == "base"]
        base = bases[0] if bases else nodes["base"]
        config = model_config(base.config, store.folder(base) / "model")
    return ModelShape.from_config(config) if config else None


def reference_parts(shape: ModelShape, block: Reference, tokens: float, device: str) -> Parts:
    """Return the parts of the peak of computing log-probs without gradients."""
    copies = memory.cast_copy_bytes(shape, block.weights, block.precision)
    head = memory.head_bytes(shape, LABELLED * tokens, block.precision, device, False)
    passing = copies + tokens * memory.passing_bytes(shape) + head
    return Parts(memory.weight_bytes(shape, block.weights), activations=passing)


def scored_tokens(block: Reference | RewardModel, row: float, device: str) -> float:
    """Return the tokens in a batch of rows with at most `row` tokens, which are scored without gradients."""
    return max(row, block.runtime.token_budget or memory.scored_tokens(device))


def reward_parts(shape: ModelShape, block: RewardModel, tokens: float) -> Parts:
    """Return the parts of the peak of scoring rewards: weights without LM head, and a batch of `tokens`."""
    weights = replace(shape, tied=True).parameters * memory.element_bytes(
        block.precision or Precision.fp32
    )
    return Parts(weights, activations=tokens * memory.passing_bytes(shape))


def sampling_parts(shape: ModelShape, block: Drawn | Answer, length: float, device: str) -> Parts:
    """Return the parts of the peak of generation: weights in the block's precision, keys and values of rows with
    `length` tokens, and the larger of one step's logits and one prefill batch of prompts."""
    weights = float(shape.parameters * memory.element_bytes(block.precision))
    generating = generation_bytes(shape, block, block.runtime.batch_size, length, device, weights)
    return Parts(weights, activations=generating)


def generation_bytes(
    shape: ModelShape,
    block: Drawn | Answer | GRPO,
    most: int,
    length: float,
    device: str,
    to_load: float,
) -> float:
    """Return the bytes beside the weights of decoding at most `most` rows of `length` tokens at once. `to_load`: the
    bytes of weights and optimizer that are not loaded yet."""
    size = memory.element_bytes(block.precision)
    rows = memory.decoded_at_once(shape, size, most, length, device, to_load)
    cached = memory.cache_bytes(shape, size)
    prompts = min(PREFILL_TOKENS, rows * length) * (cached + memory.passing_bytes(shape))
    step = max(prompts, rows * shape.vocabulary * size)
    return rows * length * cached + step


def rollout_bytes(shape: ModelShape, block: GRPO, row: float, device: str) -> float:
    """Return the bytes that a training process holds while completions are drawn: weights and optimizer, since there
    are no gradients then; a copy of the weights; and without vLLM keys, values and logits."""
    parts = memory.held_parts(shape, block)
    loaded = parts.weights + parts.optimizer + memory.inference_copy_bytes(shape, block)
    if block.sampler == "vllm":
        return loaded
    length = min(row + block.max_new_tokens, block.max_length)
    to_load = loaded + memory.reference_bytes(shape, block)
    rows = memory.rollout_rows(block)
    return loaded + generation_bytes(shape, block, rows, length, device, to_load)


def training_parts(shape: ModelShape, block: Training, row: float, device: str) -> Parts:
    """Return the parts of the peak of training. On the CPU an adapter is merged into fp32 weights, which are saved.
    GRPO's reference is among the weights, and vLLM's share of the GPU among the activations."""
    shape = memory.trained_shape(shape, block)
    needed = memory.training_bytes(
        shape, block, device, *memory.micro_batch(shape, block, row, device)
    )
    if device == "cpu":
        needed = max(
            needed,
            memory.weight_bytes(shape, block.start_weights) + memory.merged_bytes(shape, block),
        )
    if isinstance(block, GRPO):
        needed = max(needed, rollout_bytes(shape, block, row, device))
    parts = memory.held_parts(shape, block)
    parts = parts._replace(activations=needed - sum(parts))
    if isinstance(block, GRPO):
        parts = parts._replace(
            weights=parts.weights + memory.reference_bytes(shape, block),
            activations=parts.activations + memory.engine_bytes(block, device),
        )
    return parts


def block_parts(shape: ModelShape, block: Any, row: float, device: str) -> Parts:
    """Return the parts of a node's peak for rows of `row` tokens. A pair's row is its prompt and both completions."""
    match block:
        case Untrained() | Model():  # weights are copied tensor by tensor
            parts = Parts(memory.weight_bytes(shape, Weights.fp32))
        case Training():
            parts = training_parts(shape, block, row, device)
        case Reference():
            parts = reference_parts(shape, block, scored_tokens(block, row, device), device)
        case Drawn() | Answer() if block.sampler != "openai":
            parts = sampling_parts(shape, block, row + block.max_new_tokens, device)
        case RewardModel():
            parts = reward_parts(shape, block, scored_tokens(block, row, device))
        case Eval():  # held-out pairs are scored in fp32 weights; one model is loaded at a time
            copies = memory.cast_copy_bytes(shape, Weights.fp32, block.precision)
            parts = Parts(memory.weight_bytes(shape, Weights.fp32), activations=copies)
        case _:
            parts = Parts(0)
    return parts._replace(
        activations=parts.activations + (memory.LIBRARIES if device == "cpu" else 0)
    )
