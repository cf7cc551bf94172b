"""Estimate the bytes that a model takes in training and generation from its shape and a config block, without torch.

On a GPU these are bytes that torch allocates; on the CPU resident bytes, libraries included. The activations of a
layer were measured tensor by tensor (`memory.yaml`). `tests/hardware/test_memory.py` repeats this;
`tests/bench/memory.py` compares the estimates of whole nodes with their peaks."""

import os
import sys
from bisect import bisect_right
from dataclasses import replace
from typing import Any, NamedTuple

from stages.config.blocks.draws import Drawing
from stages.config.blocks.objective import Training
from stages.config.choices import Adapter, Checkpointing, Precision, Sharding, Weights
from stages.config.installation import read_beside
from stages.hardware import machine
from stages.hardware.model_shape import ModelShape, adapted_layers

LIBRARIES = 0.66 * 2**30  # bytes of a process on the CPU with torch and TRL
# per weight; nf4 includes the scales
BYTES = {Weights.fp32: 4.0, Weights.bf16: 2.0, Weights.nf4: 0.52}

# additional bytes that a layer keeps per intermediate feature, in bf16 with 4-bit weights
KEPT_NF4 = 6

# On a GPU, TRL's fused LM head holds the logits of one tile: 4,096 tokens by 32,768 of the vocabulary
# (trl/kernels/chunked_logprob.py). On the CPU ours (stages/models/lm_head.py) holds the logits of 1,024 tokens by the
# whole vocabulary, in training the probabilities of at most 2,048; softmax and statistics take STATISTICS_BYTES more
# per logit of 32 tokens.
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
HEAD_PRODUCT, HEAD_CACHED, HEAD_KEPT = 1024, 32, 2048
STATISTICS_BYTES = 12
# bytes per token and hidden feature stored outside the layers: embedding, last norm
KEPT_AROUND = 12
# bytes of a recomputed layer, gradients included, per byte stored without checkpointing
RECOMPUTED_FACTOR = 1.3

CACHE_SHARE = 0.5  # of the free memory, for keys and values
ROLLOUT_ROWS = 256  # draws that a training decodes at once, or fewer if memory is short
# The shares of the free memory that a token budget may use. The rest is for errors and other programs.
CPU_BUDGET_SHARE, GPU_BUDGET_SHARE = 0.7, 0.85
BUDGET_STEP = 256  # a token budget is a multiple of it


def most_tokens(device: str) -> int:
    """Return the most tokens in a micro-batch: more are not faster.

    SFT of SmolLM2-135M, fp32, one core of an AMD EPYC, 85 tokens per row: 74 tokens/s and 3.3 GiB with 256 tokens at
    once, 76 and 3.9 with 512, 80 and 4.8 with 1,024, 78 and 6.1 with 2,048."""
    return 1024 if device == "cpu" else 65536


def scored_tokens(device: str) -> int:
    """Return the number of tokens in a batch that is scored without gradients: more are not faster.

    64 pairs of 129 tokens, SmolLM2-135M, fp32, one core of an AMD EPYC: 30 to 34 CPU-seconds with 512 to 2,048."""
    return min(most_tokens(device), 16384)


def weight_bytes(shape: ModelShape, kind: Weights) -> float:
    """Return the bytes of a model in memory; in 4-bit models only the layers have 4 bits."""
    embeddings = shape.parameters - shape.linear
    return shape.linear * BYTES[kind] + embeddings * (
        BYTES[Weights.fp32] if kind is Weights.nf4 else BYTES[kind]
    )


def cast_copy_bytes(shape: ModelShape, kind: Weights, precision: Precision) -> float:
    """Return the bytes of autocast's bf16 copies of the layers' fp32 weights, which the backward needs."""
    return 2.0 * shape.linear if kind is Weights.fp32 and precision is Precision.bf16 else 0.0


def count_trained(shape: ModelShape, block: Training) -> int:
    return shape.parameters if block.adapter is Adapter.none else shape.count_adapter(block.lora)


class Parts(NamedTuple):
    """The bytes of a peak in each process. `activations` is everything beyond the other parts."""

    weights: float
    gradients: float = 0
    optimizer: float = 0  # Adam's two moments
    activations: float = 0


def held_parts(shape: ModelShape, block: Training) -> Parts:
    """Return the bytes that training holds throughout in each process."""
    trained, adapted = count_trained(shape, block), block.adapter is not Adapter.none
    weights = weight_bytes(shape, block.start_weights) + (4 * trained if adapted else 0)
    # several processes copy gradients into buckets to add them up
    if block.runtime.sharding is Sharding.none:
        return Parts(weights, (8 if block.runtime.world_size > 1 else 4) * trained, 8 * trained)
    return Parts(*(part / block.runtime.world_size for part in (weights, 4 * trained, 8 * trained)))


def gathered_bytes(shape: ModelShape, block: Training) -> float:
    """Return the bytes of whole weights that a process of a sharded training holds at its peak: in fp32 those outside
    the layers, from forward to backward; one layer and the next; and a layer's gradients until they are divided."""
    if block.runtime.sharding is Sharding.none:
        return 0.0
    layer = shape.linear / shape.layers
    gradients = 4 * layer if block.adapter is Adapter.none else 0
    return (
        4 * (shape.parameters - shape.linear)
        + 2 * element_bytes(block.precision) * layer
        + gradients
    )


def host_bytes(shape: ModelShape, block: Training) -> float:
    """Return the bytes of main memory that the processes of one machine need to train on its GPUs. Each loads whole
    weights before they move to its GPU; with FSDP2 only one does, and the others get shares. At the end one merges an
    adapter into fp32 weights."""
    runtime = block.runtime
    loading = 1 if runtime.sharding is Sharding.fsdp else runtime.processes
    loaded = max(loading * weight_bytes(shape, block.start_weights), merged_bytes(shape, block))
    return runtime.processes * LIBRARIES + loaded


def merged_bytes(shape: ModelShape, block: Training) -> float:
    """Return the bytes of main memory in which an adapter is merged into fp32 weights and saved; 0 without one."""
    return 0.0 if block.adapter is Adapter.none else 2 * weight_bytes(shape, Weights.fp32)


def measured_bytes(name: str, block: Training) -> Any:
    """Return what a table of the YAML file beside this one has for what a block trains, and its precision."""
    return read_beside(__file__)[name]["weights" if block.adapter is Adapter.none else "adapter"][
        block.precision
    ]


def layer_bytes(shape: ModelShape, block: Training) -> float:
    """Return the bytes per token that one layer stores for its backward."""
    hidden, intermediate, query, key = measured_bytes("kept", block)
    if block.start_weights is Weights.nf4 and block.precision is Precision.bf16:
        intermediate += KEPT_NF4
    if shape.qk_norm:
        query, key = (width + measured_bytes("kept_by_qk_norm", block) for width in (query, key))
    if shape.post_norms:
        hidden += measured_bytes("kept_by_post_norms", block)
    token_bytes = hidden * shape.hidden + intermediate * shape.active * shape.intermediate
    token_bytes += query * shape.query + key * shape.key
    if block.adapter is not Adapter.none:  # the activations between an adapter's two factors
        token_bytes += (
            len(adapted_layers(block.lora)) * block.lora.rank * element_bytes(block.precision)
        )
    return float(token_bytes)


def freed_bytes(shape: ModelShape, block: Training) -> float:
    """Return the bytes per token that one layer's forward allocates and frees."""
    hidden, intermediate, query, key = measured_bytes("freed", block)
    wide = intermediate * shape.active * shape.intermediate
    return float(hidden * shape.hidden + wide + query * shape.query + key * shape.key)


def activation_bytes(shape: ModelShape, block: Training, checkpointing: Checkpointing) -> float:
    """Return the bytes of activations per token stored for the backward. With checkpointing these are the layers'
    inputs; if it is selective, also the outputs of matrix products and attention."""
    around = KEPT_AROUND * shape.hidden
    if checkpointing is Checkpointing.none:
        return shape.layers * layer_bytes(shape, block) + around
    stream = BYTES[Weights.bf16 if block.start_weights is Weights.bf16 else Weights.fp32]
    # of these outputs
    features = 2 * (shape.hidden + shape.active * shape.intermediate + shape.query + shape.key)
    outputs = (
        element_bytes(block.precision) * features if checkpointing is Checkpointing.selective else 0
    )
    return shape.layers * (stream * shape.hidden + outputs) + around


def element_bytes(precision: Precision) -> int:
    return 2 if precision is Precision.bf16 else 4


def head_bytes(
    shape: ModelShape, labelled: float, precision: Precision, device: str, backward: bool
) -> float:
    """Return the bytes of the LM head for `labelled` tokens with a label: a tile of logits and values computed from
    it. The backward adds gradients of hidden states and of the head's weights."""
    size = element_bytes(precision)
    if not labelled:
        return 0.0
    if device == "cpu":
        total = min(labelled, HEAD_PRODUCT) * shape.vocabulary * size
        total += min(labelled, HEAD_CACHED) * shape.vocabulary * STATISTICS_BYTES
        if backward:
            # Of more than HEAD_KEPT tokens, logits and probabilities are computed again for each product.
            stored = labelled if labelled <= HEAD_KEPT else 2 * HEAD_PRODUCT
            total = stored * shape.vocabulary * size + shape.vocabulary * shape.hidden * size
        tile_vocabulary = shape.vocabulary
    else:
        total = min(labelled, TILE_TOKENS) * TILE_VOCABULARY * size
        tile_vocabulary = min(shape.vocabulary, TILE_VOCABULARY)
    if precision is Precision.bf16:
        total += tile_vocabulary * shape.hidden * size  # the rounded weights of the head
    return total + (labelled * shape.hidden * 4 if backward else 0)


def training_bytes(
    shape: ModelShape,
    block: Training,
    device: str,
    tokens: float,
    kind: Checkpointing,
    accumulated: bool = True,
) -> float:
    """Return the peak bytes of training with `tokens` in each micro-batch. The peak is at the start of the backward,
    when all activations are stored. If gradients are `accumulated`, those of an earlier micro-batch exist then."""
    state = sum(held_parts(shape, block)) + gathered_bytes(shape, block)
    sharding = block.runtime.sharding
    at_backward = state + tokens * activation_bytes(shape, block, kind)
    if device == "cpu":  # a recomputed layer takes the place of the one before it
        at_backward += (
            tokens * (1 if kind is Checkpointing.full else shape.layers) * freed_bytes(shape, block)
        )
    if not accumulated:
        at_backward -= (
            4
            * count_trained(shape, block)
            / (1 if sharding is Sharding.none else block.runtime.world_size)
        )
    first_work = head_bytes(
        shape, block.objective.labelled * tokens, block.precision, device, backward=True
    )
    if kind is not Checkpointing.none:
        first_work = max(first_work, RECOMPUTED_FACTOR * tokens * layer_bytes(shape, block))
    if kind is not Checkpointing.full and sharding is not Sharding.fsdp:  # FSDP2 gathers in bf16
        first_work += cast_copy_bytes(shape, block.start_weights, block.precision)
    # its gradient, before it is added
    embedding = 4 * shape.embedding if block.adapter is Adapter.none else 0
    return max(at_backward + first_work, state) + embedding


def cache_bytes(shape: ModelShape, size: int) -> int:
    """Return the bytes of a token's keys and values, with `size` bytes per element."""
    return 2 * size * shape.layers * shape.key


def decoded_at_once(
    shape: ModelShape, size: int, most: int, length: float, device: str, to_load: float = 0
) -> int:
    """Return how many rows of `length` tokens are decoded at once: `most`, or fewer if their cache does not fit into
    CACHE_SHARE of the memory that the weights leave; `to_load`: the bytes of weights that are not loaded yet."""
    room = CACHE_SHARE * (available_bytes(device) - to_load)
    return max(1, min(most, int(room / (length * cache_bytes(shape, size)))))


def rollout_rows(block: Drawing) -> int:
    """Return how many draws each process of a training decodes at once, if memory is not short."""
    return min(ROLLOUT_ROWS, block.batch_size * block.completions // block.runtime.world_size)


def reference_bytes(shape: ModelShape, block: Drawing) -> float:
    """Return the bytes of the frozen copy that is the reference of draws. With an adapter it is the policy without that."""
    needs_copy = block.reads_reference and block.adapter is Adapter.none
    return weight_bytes(shape, block.start_weights) if needs_copy else 0.0


def engine_bytes(block: Drawing, device: str) -> float:
    """Return the bytes of the GPU that vLLM takes beside a training on draws. On a CPU it is a process of its own."""
    on_gpu = block.sampler == "vllm" and device != "cpu"
    return block.runtime.engine_memory * available_bytes(device) if on_gpu else 0.0


def inference_copy_bytes(shape: ModelShape, block: Drawing) -> float:
    """Return the bytes of the whole weights that a training process copies while it samples. It copies them if they are
    sharded, if the sampler has a smaller type, or if vLLM needs the adapter merged."""
    kind = Weights.bf16 if block.precision is Precision.bf16 else Weights.fp32
    is_sharded = block.runtime.sharding is not Sharding.none
    is_rounded = block.start_weights is Weights.fp32 and kind is Weights.bf16
    is_merged = block.sampler == "vllm" and block.adapter is not Adapter.none
    return weight_bytes(shape, kind) if is_sharded or is_rounded or is_merged else 0.0


def passing_bytes(shape: ModelShape) -> float:
    """Return the bytes of a token's activations in one layer of a forward without gradients."""
    return 12 * shape.hidden + 10 * shape.active * shape.intermediate


def trained_shape(shape: ModelShape, block: Training) -> ModelShape:
    """Return the shape in training: a reward model has no LM head."""
    return replace(shape, tied=True) if block.objective.scores else shape


def micro_batch(
    shape: ModelShape, block: Training, row: float, device: str
) -> tuple[float, Checkpointing, bool]:
    """Return the tokens of a micro-batch, its gradient checkpointing, and True if a step has several micro-batches. No
    model is loaded yet: what an objective that draws loads before the token budget is decided is subtracted from the free memory."""
    runtime, loaded_first = block.runtime, 0.0
    if isinstance(block, Drawing):
        loaded_first = reference_bytes(shape, block) + engine_bytes(block, device)
    fits, checkpointing = (
        (0, Checkpointing.none)
        if runtime.rows
        else token_budget(shape, block, device, loaded_first)
    )
    tokens = runtime.rows * row if runtime.rows else max(row, runtime.token_budget or fits)
    if runtime.gradient_checkpointing is not Checkpointing.auto:
        checkpointing = runtime.gradient_checkpointing
    step = block.batch_size / runtime.world_size * row
    return min(tokens, step), checkpointing, tokens < step


def available_bytes(device: str) -> int:
    """Return the free bytes. On a GPU: of this process's GPU, or of the first one if torch is not loaded. On the CPU:
    the memory that machine and control groups leave to this process, divided among workers of inference."""
    if device == "cpu":
        return machine.free_memory() // int(os.environ.get("PLUMBLINE_SHARERS", "1"))
    if not machine.planned_gpu.get() and (torch := sys.modules.get("torch")):
        return int(torch.get_device_module(device).mem_get_info()[0])
    return first_gpu.free_memory if (first_gpu := machine.gpu()) else 0


def token_budget(
    shape: ModelShape, block: Training, device: str, to_load: float = 0
) -> tuple[int, Checkpointing]:
    """Return the most tokens of a micro-batch of several rows, and gradient checkpointing: the kind that recomputes
    least, among those with which the longest row fits. The estimate includes the model: load that afterwards.
    `to_load`: the bytes of other models that are not loaded yet."""
    shape = trained_shape(shape, block)
    longest = block.max_length * block.objective.sequences
    share = CPU_BUDGET_SHARE / block.runtime.processes if device == "cpu" else GPU_BUDGET_SHARE
    room = share * (available_bytes(device) - to_load)
    choices = range(BUDGET_STEP, most_tokens(device) + 1, BUDGET_STEP)
    setting = block.runtime.gradient_checkpointing
    for checkpointing in (
        block.usable_checkpointings if setting is Checkpointing.auto else (setting,)
    ):
        fits = bisect_right(
            choices, room, key=lambda n: training_bytes(shape, block, device, n, checkpointing)
        )
        if training_bytes(shape, block, device, longest, checkpointing) <= room:
            break
    return BUDGET_STEP * max(1, fits), checkpointing
