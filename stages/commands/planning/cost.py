"""Predict tokens, memory, disk and time of a node.

A finished node costs what it took. For other nodes, memory follows from the shape of the model
(stages/hardware/memory.py), tokens and time from finished nodes of the same kind on this processor, if any."""

import math
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

from stages.commands.planning import counts
from stages.commands.planning.counts import Sizes, asked_prompts, to_tokens
from stages.commands.planning.peak import (
    expected_parts,
    measured_peak,
    memory_settings,
    model_shape,
    uses_gpu,
)
from stages.config.blocks.sampling import CandidateFile
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Split
from stages.hardware import machine
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.store import Store

PUBLISHES_WEIGHTS = ("base", *OBJECTIVES)
LATEST = 5  # nodes of a kind that count; earlier ones ran older code


@dataclass
class Cost:
    tokens: int | None
    memory: float  # bytes; nan if the model's size is not known yet
    disk: float  # bytes
    seconds: float  # nan if not measured yet


class Kind(NamedTuple):
    """The attributes that two nodes must share before the time of one is scaled to the other."""

    stage: str
    precision: str
    way: str  # the values of labeler, sampler, adapter and forward
    processes: int
    model: str | float | None  # number of parameters, or the path of a reward model
    from_base: bool  # the base model answers, which rarely ends an answer
    reads_tokens: bool  # False if no tokens go through a model, so time does not scale
    processor: str | None


class FinishedNode(NamedTuple):
    """A finished node with its seconds, its `counted` tokens, and the tokens `expected` from its input's lengths."""

    kind: Kind
    expected: float
    counted: float
    seconds: float


class RunHistory:
    """The finished nodes of a store and of other stores on this machine."""

    def __init__(self, store: Store, *other_stores: Store):
        published = [m for each_store in (*other_stores, store) for _, m in each_store.manifests()]
        self.manifests = sorted(published, key=lambda m: float(m["ended"]))
        self.parameters = {
            m["fingerprint"]: m["metrics"]["parameters"] for m in self.of_stage("base")
        }
        self.finished = [ran for m in self.manifests if (ran := self.finished_node(m))]

    def of_stage(self, stage: str) -> list[Manifest]:
        return [m for m in self.manifests if m["stage"] == stage]

    def manifest(self, stage: str, fingerprint: str | None) -> Manifest | None:
        return next((m for m in self.of_stage(stage) if m["fingerprint"] == fingerprint), None)

    def sizes(self, m: Manifest) -> Sizes | None:
        """Return the sizes of a finished node, or None if its data or pairs are deleted."""
        stage, metrics = m["stage"], m["metrics"]
        role = "pool" if stage == "label" else "data"
        if stage in counts.PAIRS or (stage == "answer" and "data" not in m["inputs"]):
            role = "pairs" if "pairs" in m["inputs"] else "unpaired"
        rows = self.manifest(m["inputs"][role]["stage"], m["inputs"][role]["fingerprint"])
        if rows is None:
            return None
        if role in ("pairs", "unpaired"):
            return Sizes(
                count_pairs(metrics) or metrics["prompts"], *counts.mean_tokens(rows, "pairs")
            )
        if role == "pool":
            pool = rows["metrics"]  # a `versus` node has two candidates of each prompt
            candidates = pool.get("candidates", 2 * pool.get("prompts", 0))
            return Sizes(candidates, *counts.pool_lengths(rows))
        count = (
            rows["metrics"]["examples"].get("sft", 0)
            if stage == "sft"
            else metrics.get("prompts", 0)
        )
        return Sizes(count, *counts.mean_tokens(rows, counts.split_read(stage, m["settings"])))

    def finished_node(self, m: Manifest) -> FinishedNode | None:
        """Return a finished node's kind, tokens and seconds, or None if its input is deleted."""
        stage, settings, tokens = m["stage"], m["settings"], 0.0
        from_base = is_answered_by_base(
            settings, {role: node["stage"] for role, node in m["inputs"].items()}
        )
        if counts.reads_tokens(stage, settings):
            if not (sizes := self.sizes(m)):
                return None
            tokens = counts.stage_tokens(stage, settings, sizes, from_base)
        counted = (tokens and m["metrics"].get("tokens")) or tokens
        model = reward_model_of(m["config"]) or self.parameters.get(m["roots"].get("base", ""))
        kind = Kind(
            stage, *way_of(settings, m["config"]), model, from_base, tokens > 0, m.get("processor")
        )
        return FinishedNode(kind, tokens, counted, m["wall_seconds"])

    def scaled_time(self, kind: Kind, tokens: float) -> tuple[int | None, float]:
        """Return tokens and seconds scaled from finished nodes of this kind, or None and nan without such nodes. The
        fastest node counts, as other work on a machine or a kill makes nodes slower, never faster."""
        finished = [node for node in self.finished if node.kind == kind][-LATEST:]
        if not finished:
            return None, math.nan
        if not tokens:
            return None, min(node.seconds for node in finished)
        tokens *= median(node.counted / node.expected for node in finished)
        return round(tokens), tokens * min(node.seconds / node.counted for node in finished)


def expected_cost(node: Node, nodes: dict[str, Node], store: Store, history: RunHistory) -> Cost:
    """Return the cost of a node, measured if it is finished, else predicted."""
    if manifest := store.find(node):
        disk = sum(entry["bytes"] for entry in manifest["files"].values())
        return Cost(
            manifest["metrics"].get("tokens"),
            measured_peak(manifest),
            disk,
            manifest["wall_seconds"],
        )
    base = next((n for n in node.lineage if n.stage == "base"), nodes["base"])
    shape = model_shape(node, base, store)
    size = history.parameters.get(base.fingerprint) or (shape.parameters if shape else math.nan)
    bytes_per_weight = 4.0 if publishes_float32(node) else 2.0
    disk = bytes_per_weight * size if node.stage in PUBLISHES_WEIGHTS else 2.0**20
    peak = sum(expected_parts(node, nodes, shape)) if shape else math.nan
    here = machine.processor_name(uses_gpu(node))
    alike = [
        m
        for m in history.of_stage(node.stage)
        if m["roots"] == node.roots and m.get("processor") == here
    ]
    if alike and memory_settings(asdict(node.config)) == memory_settings(alike[-1]["config"]):
        peak = measured_peak(alike[-1])
    tokens, seconds = expected_time(node, size, store, history)
    return Cost(tokens, peak, disk, seconds)


def publishes_float32(node: Node) -> bool:
    """Return True if a node publishes a model in float32, the type in which it is trained."""
    bases = [each.config for each in node.lineage if each.stage == "base"]
    return node.stage in PUBLISHES_WEIGHTS and not any(base.dtype for base in bases)


def expected_time(
    node: Node, size: float, store: Store, history: RunHistory
) -> tuple[int | None, float]:
    """Return the predicted tokens and seconds of a node, or None and nan if they are not known."""
    stage, settings, config, tokens = node.stage, node.settings, asdict(node.config), 0.0
    from_base = is_answered_by_base(
        settings, {role: node_input.stage for role, node_input in node.inputs.items()}
    )
    if counts.reads_tokens(stage, settings):
        sizes = expected_sizes(node, store, history)
        if not sizes.rows:
            return None, math.nan
        tokens = counts.stage_tokens(stage, settings, sizes, from_base)
    model = reward_model_of(config) or (size if "base" in node.roots else None)
    processor = machine.processor_name(uses_gpu(node))
    kind = Kind(stage, *way_of(settings, config), model, from_base, tokens > 0, processor)
    return history.scaled_time(kind, tokens)


def expected_sizes(node: Node, store: Store, history: RunHistory) -> Sizes:
    """Return the predicted sizes of a node, from the rows of its finished inputs, or from their settings."""
    if node.stage == "label":
        return expected_pool_sizes(node.inputs["pool"], store, history)
    unknown = Sizes(0, *to_tokens(*counts.TEXT))
    if isinstance(node.config, CandidateFile):  # it may have any number of rows
        return unknown
    rows_node = node.inputs.get("data")
    labels = node.inputs.get("pairs") or node.inputs.get("unpaired")
    # it answers the prompts of held-out pairs
    if node.stage == "answer" and labels and not rows_node:
        published = store.find(labels)
        rows = min(published["metrics"]["held_out"], node.config.open) if published else 0
        return Sizes(rows, *counts.mean_tokens(published, "pairs")) if published else unknown
    data = next(n for n in node.lineage if n.stage == "data")
    selects = rows_node is not None and rows_node.stage == "select"  # SFT reads selected answers
    selected = store.find(rows_node) if rows_node and selects else None
    counted = selected or store.find(data)
    split = counts.split_read(node.stage, node.settings)
    examples: dict[str, float] = (
        counted["metrics"]["examples"] if counted else counts.generated_rows(data)
    )
    if (
        node.stage == "sample"
        and split == Split.sft
        and (requests := data.config.generated.get("open_sft"))
    ):
        return Sizes(requests, *to_tokens(*counts.OPEN))
    lengths = counts.mean_tokens(counted, split) if counted else to_tokens(*counts.TEXT)
    pairs = labels or (rows_node and rows_node.inputs.get("pairs"))
    if node.stage == "sft" and (selected or not pairs):
        return Sizes(0 if selects and not selected else examples.get("sft", 0), *lengths)
    if not pairs or (node.stage == "eval" and rows_node):
        return Sizes(asked_prompts(node, examples.get(split, 0)), *lengths)
    if published := store.find(pairs):
        held_out = published["metrics"]["held_out"] if node.stage in OBJECTIVES else 0
        return Sizes(
            count_pairs(published["metrics"]) - held_out, *counts.mean_tokens(published, "pairs")
        )
    pool = next((n for n in reversed(pairs.lineage) if n.stage == "sample"), None)
    alike = [m["metrics"] for m in history.of_stage(pairs.stage) if m["settings"] == pairs.settings]
    earlier = [metrics for metrics in alike if count_pairs(metrics) and metrics.get("prompts")]
    if pool is None or isinstance(pool.config, CandidateFile) or not earlier:
        return Sizes(0, *lengths)
    count = (
        count_pairs(earlier[-1])
        / earlier[-1]["prompts"]
        * asked_prompts(pool, examples.get("preference", 0))
    )
    trained = 1 - pairs.config.validation_fraction if node.stage in OBJECTIVES else 1
    return Sizes(trained * count, *lengths)


def count_pairs(metrics: dict[str, Any]) -> int:
    """Return the number of pairs or of single completions."""
    return int(metrics.get("pairs") or metrics.get("completions") or 0)


def expected_pool_sizes(pool: Node, store: Store, history: RunHistory) -> Sizes:
    """Return the sizes of a pool: its candidates if it is finished, else those expected from its sources."""
    if published := store.find(pool):
        return Sizes(published["metrics"]["candidates"], *counts.pool_lengths(published))
    if pool.stage == "versus":
        sizes = expected_sizes(pool.inputs["policy"], store, history)
        return sizes._replace(rows=2 * min(sizes.rows, pool.config.prompts))
    candidates = prompts = answers = 0.0
    for source in counts.pool_sources(pool):
        sizes = expected_sizes(source, store, history)
        rows = (sizes.rows or math.nan) * counts.candidates_per_prompt(source)
        candidates, prompts, answers = (
            candidates + rows,
            prompts + rows * sizes.prompt,
            answers + rows * sizes.answer,
        )
    if math.isnan(candidates):
        return Sizes(0, *to_tokens(*counts.TEXT))
    return Sizes(candidates, prompts / candidates, answers / candidates)


def reward_model_of(config: dict[str, Any]) -> str:
    """Return path and revision of a reward model that this run does not train, else ''."""
    if config.get("labeler") != "reward_model" or not config.get("path"):
        return ""
    return f"{config['path']}@{config.get('revision')}"


def is_answered_by_base(settings: dict[str, Any], stages: dict[str, str]) -> bool:
    """Return whether the base model answers prompts, from a node's settings and the stages of its inputs."""
    return "max_new_tokens" in settings and "base" in (stages.get("model"), stages.get("policy"))


def way_of(settings: dict[str, Any], config: dict[str, Any]) -> tuple[str, str, int]:
    """Return a node's precision, the values of labeler, sampler, adapter and forward, and its processes."""
    precision = str(settings.get("precision", "fp32"))
    way = " ".join(
        str(settings[key])
        for key in ("labeler", "sampler", "adapter", "forward")
        if key in settings
    )
    runtime = config.get("runtime") or {}
    return precision, way, int(runtime.get("processes", 1) * runtime.get("nodes", 1))
