"""What a node would cost: its tokens, memory, disk and time.

Of a node that is published, or was by an earlier version: what it took. Else rows are counted in inputs that are
built, tokens follow from the lengths of their texts and from how many finished nodes turned out to have, time from the
tokens (stages/hardware/speed.py), and memory from the model's shape (stages/hardware/memory.py).
"""

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from stages.commands.planning.earlier import Earlier
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
    passes_of,
    per_prompt,
    reads_selected,
    sources_of,
    split_of,
    texts_of,
    tokens_of,
    trains_or_asks,
)
from stages.config.blocks.sampling import CandidateFile
from stages.config.choices import Split
from stages.hardware import machine, speed
from stages.hardware.speed import Known, Ran, Task
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.store import Store

PAIRS_PER_PROMPT = 1 / 3  # where no pairs tell
COUNTED = {
    "sft": "all",
    "dpo": "all",
    "reward": "all",
    "sample": "drawn",
    "answer": "drawn",
    "reference": "drawn",
}  # as tokens
TRAINING = ("sft", "dpo", "reward")
PUBLISHES_WEIGHTS = ("base", *TRAINING)


@dataclass
class Cost:
    tokens: int | None
    memory: float  # bytes; nan where the model's size is not known yet
    disk: float  # bytes
    seconds: float  # nan where the model's size, or the number of rows, is not known yet
    known: Known = Known.measured


class Past:
    """The finished nodes of a store, and of others on this machine, as far as they tell what a node will cost."""

    def __init__(self, store: Store, *others: Store):
        self.earlier = Earlier(store)
        found = [item for known in (*others, store) for item in known.manifests()]
        self.folders = {(m["stage"], m["fingerprint"]): folder for folder, m in found}
        self.manifests = sorted((m for _, m in found), key=lambda m: float(m["ended"]))
        self.parameters = {m["fingerprint"]: m["metrics"]["parameters"] for m in self.of("base")}
        self.ran = [Ran(task, m["wall_seconds"]) for m in self.manifests if (task := self.task(m))]

    def of(self, stage: str) -> list[Manifest]:
        return [m for m in self.manifests if m["stage"] == stage]

    def manifest(self, stage: str, fingerprint: str | None) -> Manifest | None:
        return next((m for m in self.of(stage) if m["fingerprint"] == fingerprint), None)

    def folder(self, m: Manifest) -> Path:
        return self.folders[m["stage"], m["fingerprint"]]

    def length(self, m: Manifest, table: str) -> tuple[float, float]:
        return length_of(m, self.folder(m), table)

    def sizes(self, m: Manifest) -> Sizes | None:
        """Of a finished node; None where its data or its pairs are gone."""
        stage, metrics, split = m["stage"], m["metrics"], split_of(m["stage"], m["settings"])
        given = {role: node["fingerprint"] for role, node in m["inputs"].items()}
        if stage in PAIRS:
            pairs = self.manifest("pairs", given["pairs"])
            return Sizes(metrics["pairs"], metrics.get("held_out", 0), *self.length(pairs, "pairs")) if pairs else None
        if stage == "label":
            pool = self.manifest(m["inputs"]["pool"]["stage"], given["pool"])
            return Sizes(metrics["judgements"], 0, *length_of_pool(pool, self.folder(pool))) if pool else None
        of = m["inputs"]["data"]["stage"]  # data or select
        data = self.manifest(of, given["data"])
        if data is None:
            return None
        lengths = self.length(data, split)
        if stage == "sft":
            examples = data["metrics"]["examples"]
            return Sizes(examples.get("sft", 0), examples.get("validation", 0), *lengths)
        return Sizes(metrics.get("prompts", 0), 0, *lengths)

    def task(self, m: Manifest) -> Task | None:
        """What a finished node's time depended on; None where that is not known any more."""
        other = foreign(m["config"])  # whose size only the node itself noted
        base = other or m["roots"].get("base", "")
        parameters = m["metrics"].get("parameters", 0) if other else self.parameters.get(base, 0)
        passes = 0.0
        if trains_or_asks(m["stage"], m["settings"]):
            sizes = self.sizes(m)
            if not (parameters and sizes):
                return None
            passes = passes_of(m["stage"], m["settings"], sizes, m["metrics"].get("tokens", 0))
        return Task(
            m["stage"],
            precision_of(m["settings"]),
            way(m["settings"]),
            base,
            parameters,
            passes,
            m.get("processor"),
            devices(m["device"] != "cpu", m["config"]),
            m["device"] != "cpu",
        )

    def lengths(self, node: Node, split: str) -> tuple[float, float]:
        """Of rows that are still to be made: as those were that this base model was last trained on, unless open
        requests, whose answers are longer, are among them."""
        usual = texts_of(next(n for n in node.lineage if n.stage == "data"), split, reads_selected(node))
        if usual != TEXT:
            return in_tokens(*usual)
        base = next(n.fingerprint for n in node.lineage if n.stage == "base")
        for m in reversed(self.of("sft")):
            if m["roots"].get("base") == base and (data := self.manifest("data", m["roots"]["data"])):
                return self.length(data, split)
        return in_tokens(*usual)

    def longer(self, stage: str, settings: dict[str, Any], roots: dict[str, str], of_base: bool) -> tuple[float, bool]:
        """The tokens of the finished nodes most alike, as a multiple of what would have been expected of them; and
        whether those are of the same stage and data."""
        found = list[tuple[tuple[bool, ...], float]]()
        for m in self.manifests:
            tokens, kind = m["metrics"].get("tokens"), COUNTED.get(m["stage"])
            if not tokens or kind != COUNTED[stage] or m["roots"].get("base") != roots.get("base"):
                continue
            asked = asked_base({role: given["stage"] for role, given in m["inputs"].items()})
            if asked is not of_base or not (sizes := self.sizes(m)):
                continue
            apart = (m["roots"] != roots, m["stage"] != stage)
            if usual := tokens_of(m["stage"], m["settings"], sizes, of_base):
                found.append((apart, tokens / usual))
        if not found:
            return 1.0, False
        nearest = min(apart for apart, _ in found)
        return median([ratio for apart, ratio in found if apart == nearest][-speed.LATEST :]), not any(nearest)


def expected(node: Node, nodes: dict[str, Node], store: Store, past: Past) -> Cost:
    """Tokens, memory, disk and time of a node: those that it had, or what is to be expected."""
    if own := store.find(node) or past.earlier.of(node):
        disk = sum(entry["bytes"] for entry in own["files"].values())
        return Cost(own["metrics"].get("tokens"), peak_of(own), disk, own["wall_seconds"])
    of = next((n for n in node.lineage if n.stage == "base"), nodes["base"])
    other = foreign(asdict(node.config))
    stage, shape, base = node.stage, shape_of(node, of, store), other or of.fingerprint
    size = past.parameters.get(base) or (shape.parameters if shape else math.nan)
    disk = 4.0 * size if stage in PUBLISHES_WEIGHTS else 2.0**20
    peak = expected_peak(node, nodes, shape)
    roots = node.roots
    alike = [m for m in past.of(stage) if m["roots"] == roots]
    if alike and of_memory(asdict(node.config)) == of_memory(alike[-1]["config"]):
        peak = peak_of(alike[-1])
    tokens, passes, certain = None, 0.0, bool(alike)
    if trains_or_asks(stage, node.settings):
        sizes, certain = sizes_to_be(node, nodes, store, past)
        if not sizes.rows:  # what files add is not known before they are read
            return Cost(None, peak, disk, math.nan, Known.guessed)
        if stage in COUNTED:
            of_base = asked_base({role: given.stage for role, given in node.inputs.items()})
            ratio, same = past.longer(stage, node.settings, roots, of_base)
            tokens, certain = round(ratio * tokens_of(stage, node.settings, sizes, of_base)), certain and same
        passes = passes_of(stage, node.settings, sizes, tokens or 0)
    gpu = on_gpu(node)
    task = Task(
        stage,
        precision_of(node.settings),
        way(node.settings),
        base if "base" in roots else "",
        size if "base" in roots else 0,
        passes,
        machine.processor(gpu),
        devices(gpu, asdict(node.config)),
        gpu,
    )
    seconds, known = speed.expected(task, past.ran)
    return Cost(tokens, peak, disk, seconds, known if certain else max(known, Known.scaled))


def sizes_to_be(node: Node, nodes: dict[str, Node], store: Store, past: Past) -> tuple[Sizes, bool]:
    """What a stage will go through, and whether that was counted: no rows where nobody can say yet."""
    if node.stage == "label":
        return pool_to_be(node.inputs["pool"], nodes, store, past)
    if isinstance(node.config, CandidateFile):  # which holds any number
        return Sizes(0, 0, *in_tokens(*TEXT)), False
    given, made_of = node.inputs.get("data"), next(n for n in node.lineage if n.stage == "data")
    selected = (store.find(given) or past.earlier.of(given)) if given and given.stage == "select" else None
    data, split = store.find(made_of) or past.earlier.of(made_of), split_of(node.stage, node.settings)
    counted = selected or data
    examples: dict[str, float] = (
        counted["metrics"]["examples"] if counted else generated(made_of, reads_selected(node))
    )
    if node.stage == "sample" and split == Split.sft and (tasks := made_of.config.tasks) and tasks.open_sft:
        return Sizes(tasks.open_sft, 0, *in_tokens(*OPEN)), counted is not None
    lengths = past.lengths(node, split)
    if counted:
        lengths = past.length(counted, split)
    pairs = node.inputs.get("pairs") or (given and given.inputs.get("pairs"))
    if node.stage == "sft" and (selected or not pairs):
        return Sizes(examples.get("sft", 0), examples.get("validation", 0), *lengths), counted is not None
    if not pairs:
        return Sizes(asked(node, examples.get(split, 0)), 0, *lengths), counted is not None
    if made := store.find(pairs) or past.earlier.of(pairs):
        held_out = made["metrics"]["held_out"] if node.stage in TRAINING else 0
        lengths = past.length(made, "pairs")
        return Sizes(made["metrics"]["pairs"] - held_out, held_out, *lengths), True
    pool = next((n for n in reversed(pairs.lineage) if n.stage == "sample"), None)
    if pool is None or isinstance(pool.config, CandidateFile):
        return Sizes(0, 0, *lengths), False
    earlier = [m["metrics"] for m in past.of("pairs") if m["settings"] == pairs.settings and m["metrics"]["pairs"]]
    rate = PAIRS_PER_PROMPT * pairs.config.max_per_prompt
    if earlier:
        rate = earlier[-1]["pairs"] / earlier[-1]["prompts"]
    count = rate * asked(pool, examples.get("preference", 0))
    held_out = pairs.config.validation_fraction * count if node.stage in TRAINING else 0
    return Sizes(count - held_out, held_out, *lengths), False


def pool_to_be(pool: Node, nodes: dict[str, Node], store: Store, past: Past) -> tuple[Sizes, bool]:
    """Candidates that are there, or that each of the pool's sources is to give of every prompt."""
    if made := store.find(pool) or past.earlier.of(pool):
        return Sizes(made["metrics"]["candidates"], 0, *length_of_pool(made, past.folder(made))), True
    candidates = prompts = tokens = 0.0
    for source in sources_of(pool):
        sizes, _ = sizes_to_be(source, nodes, store, past)
        rows = (sizes.rows or math.nan) * per_prompt(source)
        candidates, prompts = candidates + rows, prompts + rows * sizes.prompt
        tokens += expected(source, nodes, store, past).tokens or math.nan
    return Sizes(candidates, 0, prompts / candidates, tokens / candidates), False


def foreign(config: dict[str, Any]) -> str:
    """What names a model that is no descendant of the run's base: the path of a reward model; else ''."""
    scores = config.get("reward_model") or {}
    return f"{scores['path']}@{scores.get('revision')}" if scores.get("path") else ""


def precision_of(settings: dict[str, Any]) -> str:
    return str(settings.get("reward_model", settings).get("precision", "fp32"))


def asked_base(stages: dict[str, str]) -> bool:
    """Whether a base answers prompts, by the stages of a node's inputs: its answers end seldom by themselves."""
    return "base" in (stages.get("model"), stages.get("policy"))


def way(settings: dict[str, Any]) -> str:
    """What of a stage's settings makes its tokens dearer or cheaper."""
    return " ".join(str(settings[key]) for key in ("sampler", "adapter", "forward") if key in settings)


def devices(on_gpu: bool, config: dict[str, Any]) -> int:
    """Cores of this machine, however many processes share them; or GPUs, one for each process."""
    runtime = config.get("runtime") or {}
    return int(runtime.get("processes", 1) * runtime.get("nodes", 1)) if on_gpu else os.cpu_count() or 1
