"""Tokens, memory, disk and time of a node.

A node that is published, or was by an earlier version, costs what it took. For any other one memory follows from the
shape of its model (stages/hardware/memory.py), tokens and time from finished nodes of the same kind on this processor.
Without such a node neither tokens nor time are known.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from stages.commands.planning.comparable_nodes import LATEST, Earlier, Kind, Ran, seconds_of
from stages.commands.planning.peak import expected_peak, of_memory, on_gpu, peak_of, shape_of
from stages.commands.planning.tokens import (
    OPEN,
    PAIRS,
    TEXT,
    Sizes,
    asked,
    generated,
    in_tokens,
    length_of,
    length_of_pool,
    per_prompt,
    reads_selected,
    reads_tokens,
    sources_of,
    split_of,
    texts_of,
    tokens_of,
)
from stages.config.blocks.sampling import CandidateFile
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Split
from stages.hardware import machine
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.store import Store

PUBLISHES_WEIGHTS = ("base", *OBJECTIVES)


@dataclass
class Cost:
    tokens: int | None
    memory: float  # bytes; nan where the model's size is not known yet
    disk: float  # bytes
    seconds: float  # nan where they are not measured yet


class RunHistory:
    """The finished nodes of a store, and of other stores on this machine."""

    def __init__(self, store: Store, *others: Store):
        self.earlier = Earlier(store)
        found = [item for known in (*others, store) for item in known.manifests()]
        self.folders = {(m["stage"], m["fingerprint"]): folder for folder, m in found}
        self.manifests = sorted((m for _, m in found), key=lambda m: float(m["ended"]))
        self.parameters = {m["fingerprint"]: m["metrics"]["parameters"] for m in self.of("base")}
        self.ran = [ran for m in self.manifests if (ran := self.ran_of(m))]

    def of(self, stage: str) -> list[Manifest]:
        return [m for m in self.manifests if m["stage"] == stage]

    def manifest(self, stage: str, fingerprint: str | None) -> Manifest | None:
        return next((m for m in self.of(stage) if m["fingerprint"] == fingerprint), None)

    def folder(self, m: Manifest) -> Path:
        return self.folders[m["stage"], m["fingerprint"]]

    def length(self, m: Manifest, table: str) -> tuple[float, float]:
        return length_of(m, self.folder(m), table)

    def sizes(self, m: Manifest) -> Sizes | None:
        """Return the sizes of a finished node; None where its data or its pairs are gone."""
        stage, metrics = m["stage"], m["metrics"]
        role = "pool" if stage == "label" else "data"
        if stage in PAIRS or (stage == "answer" and "pairs" in m["inputs"]):
            role = "pairs"
        rows = self.manifest(m["inputs"][role]["stage"], m["inputs"][role]["fingerprint"])
        if rows is None:
            return None
        if role == "pairs":
            return Sizes(metrics.get("pairs") or metrics["prompts"], *self.length(rows, "pairs"))
        if role == "pool":
            return Sizes(metrics["judgements"], *length_of_pool(rows, self.folder(rows)))
        count = rows["metrics"]["examples"].get("sft", 0) if stage == "sft" else metrics.get("prompts", 0)
        return Sizes(count, *self.length(rows, split_of(stage, m["settings"])))

    def ran_of(self, m: Manifest) -> Ran | None:
        """Return a finished node's kind, tokens and seconds; None where its input is gone, and its tokens unknown."""
        stage, settings, tokens = m["stage"], m["settings"], 0.0
        from_base = answered_by_base(settings, {role: node["stage"] for role, node in m["inputs"].items()})
        if reads_tokens(stage, settings):
            if not (sizes := self.sizes(m)):
                return None
            tokens = tokens_of(stage, settings, sizes, from_base)
        counted = (tokens and m["metrics"].get("tokens")) or tokens
        model = reward_model_of(m["config"]) or self.parameters.get(m["roots"].get("base", ""))
        kind = kind_of(stage, settings, m["config"], model, from_base, tokens > 0, m.get("processor"))
        return Ran(kind, tokens, counted, m["wall_seconds"])

    def time_of(self, kind: Kind, tokens: float) -> tuple[int | None, float]:
        """Return tokens and seconds, scaled from finished nodes of this kind; None and nan without any."""
        ran = [r for r in self.ran if r.kind == kind][-LATEST:]
        if not ran:
            return None, math.nan
        if not tokens:
            return None, seconds_of(0, ran)
        tokens *= median(r.counted / r.expected for r in ran)
        return round(tokens), seconds_of(tokens, ran)


def expected(node: Node, nodes: dict[str, Node], store: Store, past: RunHistory) -> Cost:
    """Return what a node took, or what is to be expected."""
    if own := store.find(node) or past.earlier.of(node):
        disk = sum(entry["bytes"] for entry in own["files"].values())
        return Cost(own["metrics"].get("tokens"), peak_of(own), disk, own["wall_seconds"])
    of = next((n for n in node.lineage if n.stage == "base"), nodes["base"])
    shape = shape_of(node, of, store)
    size = past.parameters.get(of.fingerprint) or (shape.parameters if shape else math.nan)
    disk = 4.0 * size if node.stage in PUBLISHES_WEIGHTS else 2.0**20
    peak = expected_peak(node, nodes, shape)
    alike = [m for m in past.of(node.stage) if m["roots"] == node.roots]
    if alike and of_memory(asdict(node.config)) == of_memory(alike[-1]["config"]):
        peak = peak_of(alike[-1])
    tokens, seconds = time_of(node, size, store, past)
    return Cost(tokens, peak, disk, seconds)


def time_of(node: Node, size: float, store: Store, past: RunHistory) -> tuple[int | None, float]:
    """Return the tokens and the seconds of a node that is to be built; None and nan where they are not known."""
    stage, settings, config, tokens = node.stage, node.settings, asdict(node.config), 0.0
    from_base = answered_by_base(settings, {role: given.stage for role, given in node.inputs.items()})
    if reads_tokens(stage, settings):
        sizes = sizes_to_be(node, store, past)
        if not sizes.rows:
            return None, math.nan
        tokens = tokens_of(stage, settings, sizes, from_base)
    model = reward_model_of(config) or (size if "base" in node.roots else None)
    kind = kind_of(stage, settings, config, model, from_base, tokens > 0, machine.processor(on_gpu(node)))
    return past.time_of(kind, tokens)


def sizes_to_be(node: Node, store: Store, past: RunHistory) -> Sizes:
    """Return the sizes of a node that is to be built: counted in its inputs, or as their settings ask for rows."""
    if node.stage == "label":
        return pool_to_be(node.inputs["pool"], store, past)
    if isinstance(node.config, CandidateFile):  # which holds any number
        return Sizes(0, *in_tokens(*TEXT))
    if node.stage == "answer" and "data" not in node.inputs:  # which asks the prompts of held-out pairs
        made = store.find(node.inputs["pairs"]) or past.earlier.of(node.inputs["pairs"])
        told = past.length(made, "pairs") if made else in_tokens(*TEXT)
        return Sizes(min(made["metrics"]["held_out"], node.config.open) if made else 0, *told)
    given, made_of = node.inputs.get("data"), next(n for n in node.lineage if n.stage == "data")
    selected = (store.find(given) or past.earlier.of(given)) if given and given.stage == "select" else None
    counted, split = selected or store.find(made_of) or past.earlier.of(made_of), split_of(node.stage, node.settings)
    from_base = reads_selected(node)
    examples: dict[str, float] = counted["metrics"]["examples"] if counted else generated(made_of, from_base)
    if node.stage == "sample" and split == Split.sft and (tasks := made_of.config.tasks) and tasks.open_sft:
        return Sizes(tasks.open_sft, *in_tokens(*OPEN))
    lengths = past.length(counted, split) if counted else in_tokens(*texts_of(made_of, split, from_base))
    pairs = node.inputs.get("pairs") or (given and given.inputs.get("pairs"))
    if node.stage == "sft" and (selected or not pairs):
        return Sizes(examples.get("sft", 0), *lengths)
    if not pairs or (node.stage == "eval" and given):
        return Sizes(asked(node, examples.get(split, 0)), *lengths)
    if made := store.find(pairs) or past.earlier.of(pairs):
        held_out = made["metrics"]["held_out"] if node.stage in OBJECTIVES else 0
        return Sizes(made["metrics"]["pairs"] - held_out, *past.length(made, "pairs"))
    pool = next((n for n in reversed(pairs.lineage) if n.stage == "sample"), None)
    earlier = [m["metrics"] for m in past.of("pairs") if m["settings"] == pairs.settings and m["metrics"]["pairs"]]
    if pool is None or isinstance(pool.config, CandidateFile) or not earlier:
        return Sizes(0, *lengths)
    count = earlier[-1]["pairs"] / earlier[-1]["prompts"] * asked(pool, examples.get("preference", 0))
    trained = 1 - pairs.config.validation_fraction if node.stage in OBJECTIVES else 1
    return Sizes(trained * count, *lengths)


def pool_to_be(pool: Node, store: Store, past: RunHistory) -> Sizes:
    """Return the sizes of a pool: its candidates, or those that each of its sources is to give for every prompt."""
    if made := store.find(pool) or past.earlier.of(pool):
        return Sizes(made["metrics"]["candidates"], *length_of_pool(made, past.folder(made)))
    if pool.stage == "versus":
        sizes = sizes_to_be(pool.inputs["policy"], store, past)
        return sizes._replace(rows=2 * min(sizes.rows, pool.config.prompts))
    candidates = prompts = answers = 0.0
    for source in sources_of(pool):
        sizes = sizes_to_be(source, store, past)
        rows = (sizes.rows or math.nan) * per_prompt(source)
        candidates, prompts, answers = candidates + rows, prompts + rows * sizes.prompt, answers + rows * sizes.answer
    if math.isnan(candidates):
        return Sizes(0, *in_tokens(*TEXT))
    return Sizes(candidates, prompts / candidates, answers / candidates)


def reward_model_of(config: dict[str, Any]) -> str:
    """Return path and revision of a reward model that does not descend from the run's base; else ''."""
    scores = config.get("reward_model") or {}
    return f"{scores['path']}@{scores.get('revision')}" if scores.get("path") else ""


def answered_by_base(settings: dict[str, Any], stages: dict[str, str]) -> bool:
    """Return whether the base model answers prompts, by a node's settings and the stages of its inputs."""
    return "max_new_tokens" in settings and "base" in (stages.get("model"), stages.get("policy"))


def kind_of(
    stage: str,
    settings: dict[str, Any],
    config: dict[str, Any],
    model: str | float | None,
    from_base: bool,
    scales: bool,
    processor: str | None,
) -> Kind:
    """Return the kind of a node, finished or not."""
    precision = str(settings.get("reward_model", settings).get("precision", "fp32"))
    way = " ".join(str(settings[key]) for key in ("labeler", "sampler", "adapter", "forward") if key in settings)
    runtime = config.get("runtime") or {}
    processes = int(runtime.get("processes", 1) * runtime.get("nodes", 1))
    return Kind(stage, precision, way, model, from_base, scales, processor, processes)
