"""`stage=plan`: nothing runs. Every node with its state, what changed since the nearest one, and what it would cost.

Costs are scaled from the last node of the same stage and base model in this store; without one on the same data they
are rough, and marked so (~).
"""

import math
import os
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from stages.config import SPLIT_OF_GROUP, Model, Tasks
from stages.node import Node
from stages.outside import locate
from stages.store import Manifest, Store

# Tokens per row where no earlier node tells, and floating-point operations per token and parameter.
TOKENS_PER_ROW = {"sft": 60, "sample": 20, "reference": 120, "dpo": 120, "answer": 60}
OPERATIONS = {"sft": 6, "sample": 2, "reference": 2, "dpo": 6, "answer": 2}
BYTES_PER_PARAMETER = {"sft": 16, "dpo": 16, "sample": 4, "reference": 4, "answer": 4, "eval": 8, "base": 4}
PUBLISHES_WEIGHTS = ("base", "sft", "dpo")
CPU_OPERATIONS_PER_CORE = 80e9  # per second, sustained
BYTES_PER_GGUF_WEIGHT = 0.7  # 4 bits and their scales, some tensors wider
LIBRARIES = 0.8 * 2**30  # bytes of a process that has torch and TRL loaded


@dataclass
class Cost:
    tokens: int | None
    memory: float  # bytes
    disk: float  # bytes
    seconds: float  # nan where the model's size is not known yet
    rough: bool


def show(nodes: dict[str, Node], store: Store) -> None:
    """Print the plan of every node, in the order in which they would be built."""
    table = Table("node", "fingerprint", "state", "what changed", box=None, header_style="bold", pad_edge=False)
    for title in ("tokens", "memory", "disk", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    total, rough = 0.0, False
    for name, node in nodes.items():
        state = store.state(node)
        cost = expected(node, nodes, store)
        if state != "cached":
            total += 0.0 if math.isnan(cost.seconds) else cost.seconds
            rough |= cost.rough
        table.add_row(
            name.replace("_", " "),
            node.fingerprint,
            state,
            changed(node, state, store),
            f"{cost.tokens:,}" if cost.tokens else "",
            "?" if math.isnan(cost.memory) else f"{cost.memory / 2**30:.1f} GiB",
            f"{cost.disk / 2**30:.1f} GiB" if cost.disk > 2**26 else "",
            ""
            if state == "cached"
            else "?"
            if math.isnan(cost.seconds)
            else f"{'~' * cost.rough}{cost.seconds:.0f} s",
        )
    console = Console(width=None if os.isatty(1) else 160)
    console.print(table)
    console.print(f"To build: {total / 60:.1f} min expected" + (", roughly (~)." if rough else "."))


def changed(node: Node, state: str, store: Store) -> str:
    """Which settings and inputs differ from the nearest published node of the stage."""
    notes = [f"not neutral here: {key}={value}" for key, value in node.fixed.items()]
    if state != "cached":
        earlier = [differences(node, manifest) for _, manifest in store.manifests(node.stage)]
        if not earlier:
            notes.append("the first of its kind")
        else:
            nearest = min(earlier, key=len)
            notes += nearest or ["rebuild asked for it, an input was built again, or a file is damaged"]
    return "; ".join(notes)


def differences(node: Node, manifest: Manifest) -> list[str]:
    """`learning_rate 5e-05 -> 0.0001`, `input sft`."""
    now, then = flat(node.settings), flat(manifest["settings"])
    found = [f"version {manifest['version']} -> {node.version}"] if manifest["version"] != node.version else []
    found += [
        f"{key} {then.get(key)} -> {now.get(key)}" for key in sorted(now | then) if now.get(key) != then.get(key)
    ]
    before = {role: given["fingerprint"] for role, given in manifest["inputs"].items()}
    after = {role: given.fingerprint for role, given in node.inputs.items()}
    return found + [f"input {role}" for role in sorted(before | after) if before.get(role) != after.get(role)]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v for name, inner in value.items() for k, v in flat(inner, f"{prefix}.{name}" if prefix else name).items()
    }


def expected(node: Node, nodes: dict[str, Node], store: Store) -> Cost:
    """Tokens, memory, disk and time: a published node's own, else scaled from the last of its stage, else rough."""
    if own := store.find(node):
        disk = sum(entry["bytes"] for entry in own["files"].values())
        return Cost(own["metrics"].get("tokens"), own["peak_memory"], disk, own["wall_seconds"], rough=False)
    stage, size = node.stage, parameters(nodes["base"], store)
    disk = 4.0 * size if stage in PUBLISHES_WEIGHTS else 2.0**20
    roots = {n.stage: n.fingerprint for n in node.lineage if n.stage in ("base", "data")}
    if earlier := [m for _, m in store.manifests(stage) if m["roots"].get("base") == roots.get("base")]:
        last = earlier[-1]
        scale = amount(stage, node.settings) / amount(stage, last["settings"])
        tokens = last["metrics"].get("tokens")
        seconds = last["wall_seconds"] * scale
        rough = last["roots"] != roots  # other data: how many rows it has is not known
        return Cost(round(tokens * scale) if tokens else None, last["peak_memory"], disk, seconds, rough)
    memory = LIBRARIES + BYTES_PER_PARAMETER.get(stage, 0) * size
    if stage not in OPERATIONS:
        return Cost(None, memory, disk, 10.0, rough=True)
    tokens = round(rows(stage, nodes["data"].config.tasks) * amount(stage, node.settings) * TOKENS_PER_ROW[stage])
    speed = CPU_OPERATIONS_PER_CORE * (os.cpu_count() or 1)
    return Cost(tokens, memory, disk, OPERATIONS[stage] * size * tokens / speed, rough=True)


def amount(stage: str, settings: dict[str, Any]) -> float:
    """How often a stage goes over its rows, as far as its own settings say."""
    if stage in ("sft", "dpo"):
        return float(settings["epochs"])
    return float(settings["candidates_per_prompt"]) if stage == "sample" else 1.0


def rows(stage: str, tasks: Tasks) -> int:
    """Generated rows that a stage sees; what files add is not known before they are read."""
    if stage == "sft":
        return tasks.sft
    if stage == "answer":
        return sum(vars(tasks)[group] for group, split in SPLIT_OF_GROUP.items() if split == "test")
    return tasks.preference


def parameters(base: Node, store: Store) -> float:
    """Of the base model: from its node, else from the size of its files or its random initialisation."""
    if built := store.find(base):
        return float(built["metrics"]["parameters"])
    cfg: Model = base.config
    if cfg.random_init:
        width = cfg.random_init.hidden_size
        return cfg.random_init.vocab_size * width + cfg.random_init.layers * 13.0 * width**2
    local = locate(str(cfg.path), "model.path")
    if local is None:
        return math.nan  # on the hub: known once it is downloaded
    if local.is_file():
        return local.stat().st_size / BYTES_PER_GGUF_WEIGHT
    return sum(p.stat().st_size for p in local.glob("*.safetensors")) / 2
