"""`stage=plan`: nothing runs. Every node with its state, what changed since the nearest one, and what it would cost.

Tokens and time are scaled from the last node of the same stage and base model in this store; without one they follow
from how fast that model was trained or sampled here and how long its conversations were, else from what such machines
do; all that is rough, and marked so (~). How many rows there are is known from inputs that are built. Memory is the
peak: on a GPU of what is allocated there, else of what is resident; that of such a node where nothing differs that it
depends on, else an estimate (stages/hardware/memory.py).
"""

import math
import os
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from stages.commands.settings import flat, named
from stages.config.errors import visible
from stages.config.schema import SFT, SPLIT_OF_GROUP, Training
from stages.hardware import machine, memory, model_shape
from stages.hardware.model_shape import Shape
from stages.store.node import Node
from stages.store.store import Manifest, Store

# Where no earlier node tells: tokens per row (of a pair, its prompt once), operations per token and parameter, pairs
# per prompt, and operations per second of a core, sustained.
TOKENS_PER_ROW = {"sft": 60, "sample": 20, "reference": 80, "dpo": 80, "answer": 60}
OPERATIONS = {"sft": 6, "sample": 2, "reference": 2, "dpo": 6, "answer": 2}
PAIRS_PER_PROMPT = 1 / 3
CPU_OPERATIONS_PER_CORE = {"bf16": 120e9, "fp32": 60e9}
DECODE = ("sample", "answer")  # a token at a time, at another speed than what reads or trains
ROWS = {"sft": "rows", "sample": "prompts", "reference": "pairs", "dpo": "pairs", "answer": "prompts"}  # in metrics
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
)
PUBLISHES_WEIGHTS = ("base", "sft", "dpo")
OF_MAX_LENGTH = 0.5  # tokens of a row from a file, as a share of what may be
LONGEST = 1.5  # times a row's tokens: a row of the micro-batch that needs most


@dataclass
class Cost:
    tokens: int | None
    memory: float  # bytes; nan where the model's size is not known yet
    disk: float  # bytes
    seconds: float  # nan where the model's size is not known yet
    rough: bool


def show(nodes: dict[str, Node], store: Store) -> None:
    """Print the plan of every node, in the order in which they would be built."""
    table = Table("node", "fingerprint", "state", "what changed", box=None, header_style="bold", pad_edge=False)
    for title in ("tokens", "memory", "disk", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    earlier = Earlier(store)
    total, rough, renewed = 0.0, False, dict[str, float]()
    for name, node in nodes.items():
        state = store.state(node)
        cost = expected(node, nodes, store, earlier)
        notes = changed(node, state, store)
        if state != "cached":
            seconds = 0.0 if math.isnan(cost.seconds) else cost.seconds
            total += seconds
            rough |= cost.rough
            if earlier.of(node):
                renewed[name] = seconds
        table.add_row(
            name.replace("_", " "),
            node.fingerprint,
            state,
            visible("; ".join(notes)),
            f"{cost.tokens:,}" if cost.tokens else "",
            "?" if math.isnan(cost.memory) else f"{cost.memory / 2**30:.1f} GiB {'GPU' if on_gpu(node) else 'RAM'}",
            f"{cost.disk / 2**30:.1f} GiB" if cost.disk > 2**26 else "",
            ""
            if state == "cached"
            else "?"
            if math.isnan(cost.seconds)
            else f"{'~' * cost.rough}{cost.seconds:.0f} s",
        )
    console = Console(width=None if os.isatty(1) else 160, markup=False)
    console.print(table)
    console.print(f"To build: {total / 60:.1f} min expected" + (", roughly (~)." if rough else "."))
    if renewed:
        console.print(
            f"Of these, {len(renewed)} nodes only because Plumbline makes something else of the same settings now "
            f"(version): {sum(renewed.values()):.0f} s, for {', '.join(renewed)}. CHANGELOG.md says what."
        )


class Earlier:
    """Nodes of a store that an earlier Plumbline made of what a node is made of now: they tell what it will cost."""

    def __init__(self, store: Store):
        found = [manifest for _, manifest in store.manifests()]
        self.manifests = {(m["stage"], m["fingerprint"]): m for m in found}
        self.matched = dict[tuple[str, str], bool | None]()

    def of(self, node: Node) -> Manifest | None:
        """The last node of the same settings, from inputs of which that holds, of which one at least has another
        version."""
        same = [m for key, m in self.manifests.items() if key[0] == node.stage and self.match(node, m)]
        return same[-1] if same else None

    def match(self, node: Node, manifest: Manifest) -> bool | None:
        """Whether a version differs, or None where anything else does. A key or an input that only one of them has was
        added or renamed between the versions."""
        key = node.fingerprint, manifest["fingerprint"]
        if key not in self.matched:
            self.matched[key] = self._match(node, manifest)
        return self.matched[key]

    def _match(self, node: Node, manifest: Manifest) -> bool | None:
        now, then = flat(node.settings), flat(manifest["settings"])
        if any(now[key] != then[key] for key in now.keys() & then.keys()):
            return None
        other = manifest["version"] != node.version
        if not other and now.keys() != {key for key, value in then.items() if value is not None}:
            return None
        for role in node.inputs.keys() & manifest["inputs"].keys():
            given, before = node.inputs[role], manifest["inputs"][role]
            if given.stage != before["stage"] or given.fingerprint == before["fingerprint"]:
                continue
            earlier = self.manifests.get((before["stage"], before["fingerprint"]))
            found = self.match(given, earlier) if earlier else None
            if found is None:
                return None
            other |= found
        return other


def changed(node: Node, state: str, store: Store) -> list[str]:
    """Which settings and inputs differ from the nearest published node of the stage."""
    notes = [f"not neutral here: {key}={value}" for key, value in node.fixed.items()]
    if state != "cached":
        earlier = [differences(node, manifest) for _, manifest in store.manifests(node.stage)]
        if not earlier:
            notes.append("the first of its kind")
        else:
            nearest = min(earlier, key=len)
            notes += nearest or ["rebuild asked for it, an input was built again, or a file is damaged"]
    return notes


def differences(node: Node, manifest: Manifest) -> list[str]:
    """`learning_rate 5e-05 -> 0.0001`, `path pairs.jsonl: its content`, `input sft`."""
    now = {key: (value, name) for key, value, name in named(node.settings, asdict(node.config))}
    then = {key: (value, name) for key, value, name in named(manifest["settings"], manifest["config"])}
    found = [f"version {manifest['version']} -> {node.version}"] if manifest["version"] != node.version else []
    for key in sorted(now | then):
        (value, name), (old_value, old_name) = now.get(key, (None, "–")), then.get(key, (None, "–"))
        if value != old_value:
            found.append(f"{key} {name}: its content" if name == old_name else f"{key} {old_name} -> {name}")
    before = {role: given["fingerprint"] for role, given in manifest["inputs"].items()}
    after = {role: given.fingerprint for role, given in node.inputs.items()}
    return found + [f"input {role}" for role in sorted(before | after) if before.get(role) != after.get(role)]


def expected(node: Node, nodes: dict[str, Node], store: Store, earlier: Earlier) -> Cost:
    """Tokens, memory, disk and time: those of the node, or of its earlier version, where published; else scaled from
    the last of its stage, else rough."""
    if own := store.find(node) or earlier.of(node):
        disk = sum(entry["bytes"] for entry in own["files"].values())
        return Cost(own["metrics"].get("tokens"), peak_of(own), disk, own["wall_seconds"], rough=False)
    stage, shape = node.stage, shape_of(nodes["base"], store)
    size = shape.parameters if shape else math.nan
    disk = 4.0 * size if stage in PUBLISHES_WEIGHTS else 2.0**20
    peak = expected_peak(node, nodes, shape)
    roots = {n.stage: n.fingerprint for n in node.lineage if n.stage in ("base", "data")}
    known = seen(node, store, earlier)
    if alike := [m for _, m in store.manifests(stage) if m["roots"].get("base") == roots.get("base")]:
        last = alike[-1]
        scale = amount(stage, node.settings) / amount(stage, last["settings"])
        before = last["metrics"].get(ROWS.get(stage, ""))
        if known and before and not last["settings"].get("packing"):
            scale *= known / before
        tokens = last["metrics"].get("tokens")
        seconds = last["wall_seconds"] * scale
        rough = last["roots"] != roots  # other data: its rows have another length
        if not rough and all(asdict(node.config).get(key) == last["config"].get(key) for key in OF_MEMORY):
            peak = peak_of(last)
        return Cost(round(tokens * scale) if tokens else None, peak, disk, seconds, rough)
    if stage not in OPERATIONS or not node.settings.get("train", True):
        return Cost(None, peak, disk, 10.0, rough=True)
    count = rows(node, nodes) if known is None else known
    if not count:  # what files add is not known before they are read
        return Cost(None, peak, disk, math.nan, rough=True)
    speed, length = measured(stage, roots, size, store)
    speed = speed or CPU_OPERATIONS_PER_CORE[node.config.precision] * (os.cpu_count() or 1)
    tokens = round(count * amount(stage, node.settings) * TOKENS_PER_ROW[stage] * length)
    return Cost(tokens, peak, disk, OPERATIONS[stage] * size * tokens / speed, rough=True)


def seen(node: Node, store: Store, earlier: Earlier) -> int | None:
    """How many rows a stage will see, where the input that says so is built."""
    given = node.inputs.get("pairs" if node.stage in ("reference", "dpo") else "data")
    made = given and (store.find(given) or earlier.of(given))
    if not made or node.stage not in ROWS:
        return None
    metrics = made["metrics"]
    if node.stage in ("reference", "dpo"):
        return int(metrics["pairs"] - (metrics["held_out"] if node.stage == "dpo" else 0))
    count = int(metrics["examples"].get(split_of(node), 0))
    return min(count, node.settings.get("prompts") or count) // node.settings.get("rounds", 1)


def measured(stage: str, roots: dict[str, str], size: float, store: Store) -> tuple[float | None, float]:
    """Operations per second of the last node that went through this base model in the same way; and the tokens of a
    conversation in this data, as a multiple of what is usual."""
    speed, length = None, 1.0
    examples = {m["fingerprint"]: m["metrics"]["examples"] for _, m in store.manifests("data")}
    for _, m in store.manifests():
        tokens = m["metrics"].get("tokens")
        if not tokens or m["roots"].get("base") != roots.get("base"):
            continue
        if (m["stage"] in DECODE) is (stage in DECODE):
            speed = OPERATIONS[m["stage"]] * size * tokens / m["wall_seconds"]
        if m["stage"] == "sft" and m["roots"] == roots and (read := examples.get(roots["data"], {}).get("sft")):
            length = tokens / (read * amount("sft", m["settings"]) * TOKENS_PER_ROW["sft"])
    return speed, length


def peak_of(manifest: Manifest) -> float:
    return float(manifest["peak_gpu_memory"] or manifest["peak_memory"])


def expected_peak(node: Node, nodes: dict[str, Node], shape: Shape | None) -> float:
    """Bytes; nan where the model's shape is not known."""
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
    runtime = getattr(node.config, "runtime", None)
    if runtime is None or runtime.device == "cpu":
        return False
    return runtime.device == "cuda" or machine.gpu() is not None


def amount(stage: str, settings: dict[str, Any]) -> float:
    """How often a stage goes over its rows, as far as its own settings say."""
    return float(settings.get("epochs") or settings.get("candidates_per_prompt") or 1)


def rows(node: Node, nodes: dict[str, Node]) -> float:
    """Rows of generated tasks that a stage sees, roughly; 0 where it sees none."""
    tasks = nodes["data"].config.tasks
    prompts = sum(vars(tasks)[group] for group, split in SPLIT_OF_GROUP.items() if split == split_of(node))
    if node.stage not in ("reference", "dpo"):
        return float(prompts)
    return (
        0.0 if nodes["label"].config.brings_pool else PAIRS_PER_PROMPT * prompts * nodes["pairs"].config.max_per_prompt
    )


def split_of(node: Node) -> str:
    """Whose prompts a stage reads, asks, or has pairs of."""
    return "sft" if node.stage == "sft" else str(node.settings.get("split", "preference"))


def shape_of(base: Node, store: Store) -> Shape | None:
    """Of the base model; None where it is on the hub and not even its config can be had."""
    config = model_shape.config_of(base.config, store.folder(base) / "model")
    return Shape.of(config) if config else None
