"""Calculate the memory and time of every node on GPUs that this machine lacks, with neither weights nor data at hand.

Time is arithmetic, or for generated tokens memory traffic, at shares of a GPU's rates. Recomputed layers count as
arithmetic."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from stages.commands.planning.peak import (
    expected_parts,
    longest_row,
    model_shape,
    training_parts,
    uses_gpu,
)
from stages.commands.planning.rows import expected_rows, repeats
from stages.commands.result import Result, new_table, print_parts
from stages.config.blocks.evaluation import Answer
from stages.config.blocks.sampling import Drawn
from stages.config.blocks.training import GRPO, SFT, Reference, Training
from stages.config.choices import GPUS, Adapter, Checkpointing, Precision, Reads, Sharding
from stages.config.schema import Config, Target
from stages.hardware import memory
from stages.hardware.model_shape import ModelShape
from stages.store.node import Node
from stages.store.store import Store

log = logging.getLogger(__name__)

# Shares of a GPU's rates, between which the hours lie. The first is what training of 1.7B reaches on one H200
# (docs/explanation/benchmarks.md). The others are below what published runs reached (docs/how-to/memory.md): SFT of
# Zephyr 7B 38% and of Tülu 3 8B 12%, their DPO, with the reference, 9% and 8%. On more GPUs the runs of 70B reached 7%
# and 4% on 64, which no share of smaller runs predicts.
FASTEST, SLOWEST, SLOWEST_TRAINING = 0.4, 0.1, 0.07
MOST_GPUS = 32
MEMORY = (*memory.Parts._fields, "peak", "main memory")


@dataclass
class CalculatedNode:
    """A node's bytes per GPU, at the peak and by its parts, and in one machine's main memory. `hours`: the least and the
    most; None if not known."""

    name: str
    memory: dict[str, float]
    hours: tuple[float, float] | None


@dataclass
class CalculatedPlan(Result):
    """`sentences`: on the GPUs, then the settings with which a training that does not fit would fit."""

    nodes: list[CalculatedNode]
    sentences: list[str]
    warnings: list[str] = field(default_factory=list)

    def show(self) -> None:
        table = new_table("node", numbers=(*MEMORY, "hours"))
        for node in self.nodes:
            gibs = [f"{size / 2**30:.1f}" if size else "" for size in node.memory.values()]
            table.add_row(node.name.replace("_", " "), *gibs, hours_text(node.hours))
        print_parts(table, *self.sentences)
        for sentence in self.warnings:
            log.warning("warning: %s", sentence)


def hours_text(hours: tuple[float, float] | None) -> str:
    if hours is None:
        return "not known"
    least, most = hours
    return f"{least:.2f} to {most:.2f}"


def calculate(cfg: Config, nodes: dict[str, Node], store: Store) -> CalculatedPlan:
    """Return, for every node that runs a model, the parts of its peak per GPU, the main memory of one machine, and
    the hours; then the settings with which a training that does not fit would fit."""
    gpu = str(cfg.plan.gpu)
    _, capacity, bandwidth, bf16, _ = GPUS[gpu]
    count = cfg.launch.processes * cfg.launch.nodes
    sentences = [
        f"{count} × {gpu}: {capacity} GB, {bf16} TFLOP/s in bf16, {bandwidth} TB/s. GiB per GPU; "
        f"hours at {FASTEST:.0%} to {SLOWEST:.0%} of these rates, or after SFT to "
        f"{SLOWEST_TRAINING:.0%}; not known for more than {MOST_GPUS} GPUs."
    ]
    planned = list[CalculatedNode]()
    for name, node in nodes.items():
        if not uses_gpu(node):
            continue
        shape = model_shape(node, nodes, store)
        if shape is None:
            continue
        row = longest_row(node, nodes)
        memory_by_part = node_memory(node, nodes, shape)
        hours = None
        if count <= MOST_GPUS:
            tokens = expected_tokens(cfg, node, store)
            hours = hours_range(tokens * seconds_per_token(shape, node.config, row, gpu), node)
        planned.append(CalculatedNode(name, memory_by_part, hours))
        if memory_by_part["peak"] > capacity * 1e9:
            sentences.append(f"{name} does not fit. {way_out(shape, node.config, row, capacity)}.")
    return CalculatedPlan(planned, sentences)


def node_memory(node: Node, nodes: dict[str, Node], shape: ModelShape) -> dict[str, float]:
    """Return the bytes per GPU, by part and at the peak, and those in one machine's main memory."""
    parts = expected_parts(node, nodes, shape)
    main_memory = memory.LIBRARIES + parts.weights
    if isinstance(node.config, Training):
        main_memory = memory.host_bytes(shape, node.config)
    return parts._asdict() | {"peak": sum(parts), "main memory": main_memory}


def hours_range(seconds: float, node: Node) -> tuple[float, float] | None:
    """Return the least and the most hours of a node, from its seconds at the full rates; None if these are nan."""
    if math.isnan(seconds):
        return None
    after_sft = isinstance(node.config, Training | Reference) and not isinstance(node.config, SFT)
    slowest = SLOWEST_TRAINING if after_sft else SLOWEST
    return seconds / 3600 / FASTEST, seconds / 3600 / slowest


def way_out(shape: ModelShape, block: object, row: float, capacity: float) -> str:
    """Return the settings with which a node fits into GPUs with `capacity` GB."""
    ways = list[str]()
    for way, smaller in smaller_trainings(block):
        if sum(training_parts(shape, smaller, row, "cuda")) <= capacity * 1e9:
            ways.append(way)
    if not ways:
        return "Use a GPU with more memory"
    return f"It would with {' or with '.join(ways[:2])}"


def smaller_trainings(block: object) -> Iterator[tuple[str, Training]]:
    """Yield settings with which a training needs less memory per GPU, each with its block: an adapter, then shares of
    ever more GPUs. Both with the fewest tokens at once."""
    if not isinstance(block, Training):
        return
    key = block.block
    runtime = replace(block.runtime, gradient_checkpointing=Checkpointing.full, micro_batch=1)
    fewest = replace(block, runtime=runtime)
    way = f"{key}.runtime.gradient_checkpointing=full {key}.runtime.micro_batch=1 "
    if fewest == block:
        way = ""
    yield f"{way}{key}.adapter=lora", replace(fewest, adapter=Adapter.lora)
    if isinstance(block, GRPO) and block.sampler == "vllm":  # one process trains beside vLLM
        return
    if runtime.world_size == 1:
        yield way.strip(), fewest
    for count in range(max(2, runtime.world_size), block.batch_size + 1):
        if block.batch_size % count == 0:
            shares = replace(runtime, processes=count, nodes=1, sharding=Sharding.fsdp)
            yield f"{way}launch=fsdp and {count} GPUs", replace(block, runtime=shares)


def expected_tokens(cfg: Config, node: Node, store: Store) -> float:
    """Return the tokens that a node reads, of `plan.tokens`, or the most that it generates by its settings; nan without
    both."""
    block = node.config
    stage = Target.dpo if node.stage == Target.reference else Target(node.stage)
    named = cfg.plan.tokens.get(stage)
    if named:
        return named * float(getattr(block, "epochs", 1))
    if isinstance(block, Drawn | Answer):
        return expected_rows(node, store) * repeats(node) * block.max_new_tokens
    return math.nan


def seconds_per_token(shape: ModelShape, block: Any, row: float, gpu: str) -> float:
    """Return the seconds per token at the full rate of all GPUs that work on a node. A forward takes two operations
    per weight and token, and four per feature of a query and position before it."""
    if isinstance(block, Drawn | Answer):
        length, rows = row + block.max_new_tokens, block.runtime.batch_size
        return seconds_per_drawn_token(shape, block, length, rows, gpu)
    _, _, _, bf16, fp32 = GPUS[gpu]
    rate = bf16 if getattr(block, "precision", None) is Precision.bf16 else fp32
    processes = getattr(getattr(block, "runtime", None), "world_size", 1)
    weights = replace(shape, experts=shape.active, tied=True).parameters
    forward = 2 * weights + 2 * shape.layers * shape.query * row
    seconds = forwards(shape, block, row) * forward / (processes * rate * 1e12)
    if isinstance(block, GRPO):
        rows = memory.rollout_rows(block)
        seconds += seconds_per_drawn_token(shape, block, row, rows, gpu)
    return seconds


def forwards(shape: ModelShape, block: object, row: float) -> int:
    """Return the work for a token in forwards. A backward takes as much as two, or as one if only an adapter is trained;
    layers are recomputed with checkpointing."""
    if not isinstance(block, Training):
        return 1
    _, checkpointing, _ = memory.micro_batch(shape, block, row, "cuda")
    passes = 3 if block.adapter is Adapter.none else 2
    passes += checkpointing is Checkpointing.full
    passes += block.objective.reads is Reads.unpaired  # the mismatched completion
    passes += isinstance(block, GRPO) and block.beta > 0  # the reference
    return passes


def seconds_per_drawn_token(
    shape: ModelShape, block: Drawn | Answer | GRPO, length: float, rows: int, gpu: str
) -> float:
    """Return the seconds per generated token, which reads a share of the weights, and the keys and values before it.
    `length`: tokens of a whole row; `rows`: decoded at once."""
    size = memory.element_bytes(block.precision)
    weights = shape.parameters * size
    rows = memory.decoded_at_once(shape, size, rows, length, "cuda", weights)
    processes = 1 if getattr(block, "sampler", "") == "vllm" else block.runtime.world_size
    read = weights / rows + length * memory.cache_bytes(shape, size)
    return read / (processes * GPUS[gpu][2] * 1e12)
