"""Predict the peak memory of a training from the shape of its model (stages/hardware/memory.py)."""

from stages.commands.earlier import uses_gpu
from stages.config.blocks.draws import Drawing
from stages.config.blocks.objective import Training
from stages.config.blocks.training import SFT
from stages.hardware import memory
from stages.hardware.memory import Parts
from stages.hardware.model_shape import ModelShape
from stages.preflight.file_rows import file_lengths
from stages.preflight.model_files import model_config
from stages.store.node import Node
from stages.store.store import Store

MEAN_SHARE_OF_MAX_LENGTH = 0.5  # of the tokens of a file's row
LONGEST_TO_MEAN = 1.5  # of the rows: the longest one is that of the largest micro-batch
PREFILL_TOKENS = 8192  # stages/samplers/hf.py


def predicted_parts(node: Node, nodes: dict[str, Node], store: Store) -> Parts | None:
    """Return the parts of a training's predicted peak; None for other nodes, or if the hub has no config of the model."""
    if not isinstance(node.config, Training):
        return None
    shape = model_shape(node, store)
    if shape is None:
        return None
    device = "cpu"
    if uses_gpu(node):
        device = "cuda"
    return training_parts(shape, node.config, longest_row_tokens(node, nodes), device)


def longest_row_tokens(node: Node, nodes: dict[str, Node]) -> float:
    """Return the tokens of the longest row of a training: of its local files, from the objective's typical rows, or for
    files that are not here from a share of max_length."""
    block: Training = node.config
    if isinstance(block, SFT) and block.packing:
        return block.max_length
    lengths = file_lengths(node)
    if lengths:
        return min(lengths.longest_tokens, block.max_length)
    mean = float(block.objective.row_tokens)
    reads_preference_file = "label" in nodes and nodes["label"].config.brings_pool
    if nodes["data"].config.sources or reads_preference_file:
        mean = MEAN_SHARE_OF_MAX_LENGTH * block.max_length
    return min(LONGEST_TO_MEAN * mean, block.max_length)


def model_shape(node: Node, store: Store) -> ModelShape | None:
    """Return the shape of a training's base model; None if the hub has no config for it."""
    base = next(each for each in node.lineage if each.stage == "base")
    config = model_config(base.config, store.folder(base) / "model")
    return ModelShape.from_config(config) if config else None


def training_parts(shape: ModelShape, block: Training, row_tokens: float, device: str) -> Parts:
    """Return the parts of the peak for rows of `row_tokens`. On the CPU an adapter is merged in the end, and the libraries
    count as activations. The reference of an objective that draws is among the weights, and vLLM's share of the GPU among the activations."""
    shape = memory.trained_shape(shape, block)
    micro_batch = memory.micro_batch(shape, block, row_tokens, device)
    peak = memory.training_bytes(shape, block, device, *micro_batch)
    if device == "cpu":
        unmerged = memory.weight_bytes(shape, block.start_weights)
        peak = max(peak, unmerged + memory.merged_bytes(shape, block))
    if isinstance(block, Drawing):
        peak = max(peak, rollout_bytes(shape, block, row_tokens, device))
    parts = memory.held_parts(shape, block)
    weights = parts.weights
    activations = peak - sum(parts)
    if device == "cpu":
        activations += memory.LIBRARIES
    if isinstance(block, Drawing):
        weights += memory.reference_bytes(shape, block)
        activations += memory.engine_bytes(block, device)
    return parts._replace(weights=weights, activations=activations)


def rollout_bytes(shape: ModelShape, block: Drawing, row_tokens: float, device: str) -> float:
    """Return the bytes that a training process holds while completions are drawn: weights and optimizer, since there
    are no gradients then; a copy of the weights; and without vLLM keys, values, and the larger of one step's logits and
    one prefill batch of prompts."""
    parts = memory.held_parts(shape, block)
    # there are no gradients then
    loaded = parts.weights + parts.optimizer + memory.inference_copy_bytes(shape, block)
    if block.sampler == "vllm":
        return loaded
    element = memory.element_bytes(block.precision)
    length = min(row_tokens + block.max_new_tokens, block.max_length)
    to_load = loaded + memory.reference_bytes(shape, block)
    most_rows = memory.rollout_rows(block)
    rows = memory.decoded_at_once(shape, element, most_rows, length, device, to_load)
    keys_and_values = memory.cache_bytes(shape, element)  # of a token
    prefill_tokens = min(PREFILL_TOKENS, rows * length)
    prefill = prefill_tokens * (keys_and_values + memory.passing_bytes(shape))
    logits_of_step = rows * shape.vocabulary * element
    return loaded + rows * length * keys_and_values + max(prefill, logits_of_step)
