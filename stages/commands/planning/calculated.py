"""Calculate the memory and time of every node on GPUs that this machine lacks, with neither weights nor data at hand.

Time is arithmetic, or for generated tokens memory traffic, at shares of a GPU's rates. Recomputed layers count as
arithmetic."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from rich.table import Table

from stages.commands.planning.cost import RunHistory, expected_sizes, is_answered_by_base
from stages.commands.planning.counts import reads_tokens, stage_tokens
from stages.commands.planning.peak import (
    expected_parts,
    expected_row,
    model_shape,
    training_parts,
    uses_gpu,
)
from stages.commands.result import Result, print_parts
from stages.config.blocks.evaluation import Answer
from stages.config.blocks.sampling import Drawn
from stages.config.blocks.training import GRPO, SFT, Reference, Training
from stages.config.choices import GPUS, Adapter, Checkpointing, Precision, Reads, Sharding
from stages.config.schema import Config
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
MEMORY = (*memory.Parts.__annotations__, "peak", "main memory")


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
        table = Table("node", box=None, header_style="bold", pad_edge=False)
        for title in (*MEMORY, "hours"):
            table.add_column(title, justify="right", no_wrap=True)
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
    return f"{least:.2f} to {most:.2f}" if least * FASTEST >= 0.001 else "under 0.01"


def calculate(cfg: Config, nodes: dict[str, Node], store: Store) -> CalculatedPlan:
    """Return, for every node that runs a model, the parts of its peak per GPU, the main memory of one machine, and
    the hours; then the settings with which a training that does not fit would fit."""
    name, history = str(cfg.plan.gpu), RunHistory(store)
    _, capacity, bandwidth, *rates = GPUS[name]
    lines = [
        f"{cfg.launch.processes * cfg.launch.nodes} × {name}: {capacity} GB, {rates[0]} TFLOP/s in bf16, "
    ]
    lines[0] += (
        f"{bandwidth} TB/s. GiB per GPU; hours at {FASTEST:.0%} to {SLOWEST:.0%} of these rates, "
        f"or after SFT to {SLOWEST_TRAINING:.0%}; not known for more than {MOST_GPUS} GPUs."
    )
    planned = list[CalculatedNode]()
    for title, node in nodes.items():
        base = next((n for n in node.lineage if n.stage == "base"), nodes["base"])
        if not uses_gpu(node) or not (shape := model_shape(node, base, store)):
            continue
        parts = expected_parts(node, nodes, shape)
        row = expected_row(node, nodes)
        block = node.config
        host = memory.LIBRARIES + parts.weights
        if isinstance(block, Training):
            host = memory.host_bytes(shape, block)
        tokens = expected_tokens(cfg, node, store, history)
        hours = tokens * seconds_per_token(shape, block, row, name) / 3600
        if cfg.launch.processes * cfg.launch.nodes > MOST_GPUS:
            hours = math.nan
        span = None if math.isnan(hours) else (hours / FASTEST, hours / slowest_share(block))
        sizes = dict(zip(MEMORY, (*parts, sum(parts), host), strict=True))
        planned.append(CalculatedNode(title, sizes, span))
        if sum(parts) > capacity * 1e9:
            ways = [way for way, peak in remedies(shape, block, row) if peak <= capacity * 1e9]
            way_out = (
                f"It would with {' or with '.join(ways[:2])}"
                if ways
                else "Use a GPU with more memory"
            )
            lines.append(f"{title} does not fit. {way_out}.")
    return CalculatedPlan(planned, lines)


def slowest_share(block: object) -> float:
    """Return the lowest share of a GPU's rates that hours are given for."""
    after_sft = isinstance(block, Training | Reference) and not isinstance(block, SFT)
    return SLOWEST_TRAINING if after_sft else SLOWEST


def remedies(shape: ModelShape, block: object, row: float) -> Iterator[tuple[str, float]]:
    """Yield settings with which a training needs less memory per GPU, each with its peak: an adapter, then shares of
    ever more GPUs. Both with the fewest tokens at once."""
    if not isinstance(block, Training):
        return
    runtime = replace(block.runtime, gradient_checkpointing=Checkpointing.full, micro_batch=1)
    smaller, name = replace(block, runtime=runtime), block.block
    way = (
        ""
        if smaller == block
        else f"{name}.runtime.gradient_checkpointing=full {name}.runtime.micro_batch=1 "
    )
    yield (
        f"{way}{name}.adapter=lora",
        sum(training_parts(shape, replace(smaller, adapter=Adapter.lora), row, "cuda")),
    )
    if isinstance(block, GRPO) and block.sampler == "vllm":  # one process trains beside vLLM
        return
    for count in (
        n for n in range(runtime.world_size, block.batch_size + 1) if block.batch_size % n == 0
    ):
        sharded = replace(
            runtime,
            processes=count,
            nodes=1,
            sharding=Sharding.fsdp if count > 1 else Sharding.none,
        )
        peak = sum(training_parts(shape, replace(block, runtime=sharded), row, "cuda"))
        yield (f"{way}launch=fsdp and {count} GPUs" if count > 1 else way.strip()), peak


def expected_tokens(cfg: Config, node: Node, store: Store, history: RunHistory) -> float:
    """Return the tokens that a node reads or generates: of `plan.tokens`, else by its settings; nan without both."""
    if named := cfg.plan.tokens.get("dpo" if node.stage == "reference" else node.stage):
        return named * float(getattr(node.config, "epochs", 1))
    if (
        not reads_tokens(node.stage, node.settings)
        or not (sizes := expected_sizes(node, store, history)).rows
    ):
        return math.nan
    from_base = is_answered_by_base(
        node.settings, {role: each.stage for role, each in node.inputs.items()}
    )
    return stage_tokens(node.stage, node.settings, sizes, from_base)


def seconds_per_token(shape: ModelShape, block: object, row: float, gpu: str) -> float:
    """Return the seconds per token at the full rate of all GPUs that work on a node. A forward takes two operations
    per weight and token, and four per feature of a query and position before it; a backward twice as many, or as many
    if only an adapter is trained. A generated token reads its keys and values, and a share of the weights."""
    if isinstance(block, Drawn | Answer):
        return seconds_per_drawn_token(
            shape, block, row + block.max_new_tokens, block.runtime.batch_size, gpu
        )
    rates, precision = GPUS[gpu][3:], getattr(block, "precision", Precision.fp32)
    weights = replace(shape, experts=shape.active, tied=True).parameters
    forward = 2 * weights + 2 * shape.layers * shape.query * row
    passes, drawing, processes = 1, 0.0, getattr(getattr(block, "runtime", None), "world_size", 1)
    if isinstance(block, Training):
        _, checkpointing, _ = memory.micro_batch(shape, block, row, "cuda")
        passes = (3 if block.adapter is Adapter.none else 2) + (checkpointing is Checkpointing.full)
        # the mismatched completion, without gradients
        passes += block.objective.reads is Reads.unpaired
    if isinstance(block, GRPO):
        passes += block.beta > 0  # the reference
        drawing = seconds_per_drawn_token(shape, block, row, memory.rollout_rows(block), gpu)
    return drawing + passes * forward / (processes * rates[precision is not Precision.bf16] * 1e12)


def seconds_per_drawn_token(
    shape: ModelShape, block: Drawn | Answer | GRPO, length: float, rows: int, gpu: str
) -> float:
    """Return the seconds per generated token, which reads a share of the weights, and the keys and values before it.
    `length`: tokens of a whole row; `rows`: decoded at once."""
    size = memory.element_bytes(block.precision)
    weights = shape.parameters * size
    rows = memory.decoded_at_once(shape, size, rows, length, "cuda", weights)
    processes = 1 if getattr(block, "sampler", "") == "vllm" else block.runtime.world_size
    return (weights / rows + length * memory.cache_bytes(shape, size)) / (
        processes * GPUS[gpu][2] * 1e12
    )
