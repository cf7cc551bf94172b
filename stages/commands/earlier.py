"""The earlier node that is nearest to one that is to be built: what changed since, and how long it took."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from stages.commands.node_settings import ABSENT, shown_settings, shown_source
from stages.hardware import machine
from stages.store.manifest import Manifest, edited_source
from stages.store.node import Node
from stages.store.store import Store


@dataclass
class Earlier:
    """`seconds`: what the earlier node took; nan if it had another model, other data or another processor."""

    differences: list[str]
    seconds: float

    def distance(self) -> tuple[bool, int]:
        return math.isnan(self.seconds), len(self.differences)


def nearest_earlier(node: Node, store: Store) -> Earlier | None:
    """Return the nearest finished node of the same stage, the newest of equally near ones; None without any. Those
    with the same model, data and processor are nearer than all others; then the fewest differences count."""
    processor = machine.processor_name(uses_gpu(node))
    oldest_first = list[Earlier]()
    for _, manifest in store.manifests(node.stage):
        same_model_and_data = manifest["roots"] == node.roots
        is_alike = same_model_and_data and manifest.get("processor") == processor
        seconds = manifest["wall_seconds"] if is_alike else math.nan
        oldest_first.append(Earlier(node_differences(node, manifest), seconds))
    return min(reversed(oldest_first), key=Earlier.distance, default=None)


def uses_gpu(node: Node) -> bool:
    """Return whether the model of this node runs on a GPU, by its `runtime` and this machine."""
    device = getattr(getattr(node.config, "runtime", None), "device", "cpu")
    return device == "cuda" or (device == "auto" and machine.gpu() is not None)


def node_differences(node: Node, manifest: Manifest) -> list[str]:
    """Return differences such as `learning_rate 5e-05 -> 0.0001` and `input sft`."""
    before = shown_source(manifest["version"], edited_source(manifest))
    before |= shown_settings(manifest["settings"], manifest["config"])
    now = shown_source(node.version, node.edited)
    now |= shown_settings(node.settings, asdict(node.config))
    texts = []
    for key in differing(before, now):
        texts.append(f"{key} {before.get(key, ABSENT)} -> {now.get(key, ABSENT)}")
    inputs_before = {role: entry["fingerprint"] for role, entry in manifest["inputs"].items()}
    inputs_now = {role: each.fingerprint for role, each in node.inputs.items()}
    return texts + [f"input {role}" for role in differing(inputs_before, inputs_now)]


def differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [key for key in sorted(before | now) if before.get(key) != now.get(key)]
