"""The settings of nodes under the keys that users type, as flat dicts, with files shown by name."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.config.blocks.data import Data
from stages.pipeline.graph import SEEDED_BLOCKS
from stages.store.manifest import Manifest

Nodes = dict[tuple[str, str], tuple[Path, Manifest]]  # by stage and fingerprint
BLOCKS = {"base": "model"}  # other stages have a block of their name
ABSENT = "–"  # the value of a key that a run does not have
LONGEST = 40  # characters; longer values are cut off in a line of settings


def named_settings(settings: Any, config: Any, key: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield each key with its value and the name to show. In `settings`, which the fingerprint is made of, a file is
    its digest; in `config`, which has the same shape, it is its path, whose name is shown."""
    if isinstance(settings, dict):
        for name, inner in settings.items():
            inner_config = config.get(name) if isinstance(config, dict) else None
            yield from named_settings(inner, inner_config, f"{key}.{name}" if key else name)
    elif isinstance(settings, list) and any(isinstance(item, dict) for item in settings):
        for i, item in enumerate(settings):
            yield from named_settings(
                item, config[i] if isinstance(config, list) else None, f"{key}[{i}]"
            )
    elif isinstance(settings, str) and isinstance(config, str) and settings != config:
        yield key, settings, Path(config).name
    else:
        yield key, settings, format_value(settings)


def format_value(value: Any) -> str:
    if value is None:
        return ABSENT
    return f"{value:g}" if isinstance(value, float) else str(value)


def lineage(nodes: Nodes, *starts: tuple[str, str]) -> list[Manifest]:
    """Return the manifests of these nodes and of their ancestors in the store, the nearest first."""
    manifests: dict[tuple[str, str], Manifest] = {}
    waiting = list(starts)
    while waiting:
        key = waiting.pop(0)
        if key in nodes and key not in manifests:
            manifests[key] = nodes[key][1]
            for entry in manifests[key]["inputs"].values():
                waiting.append((entry["stage"], entry["fingerprint"]))
    return list(manifests.values())


def lineage_settings(manifests: list[Manifest]) -> dict[str, str]:
    """Return the settings of these nodes by key (`dpo.beta`). Of several rounds, the last one counts."""
    settings: dict[str, str] = {}
    blocks = pool_blocks(manifests) | source_blocks(manifests)
    for m in manifests:
        stage = str(m["stage"])
        block = blocks.get(m["fingerprint"], BLOCKS.get(stage, stage))
        if stage == "sft" and m["settings"].get("control"):
            block = "control"
        version = {"version": m["version"]}
        for key, value, name in named_settings(
            version | m["settings"], version | m["config"], block
        ):
            # Two files may have the same name, so the first digits of the digest are shown, too.
            is_file = name != format_value(value)
            settings.setdefault(key, f"{name} ({value[:6]})" if is_file else name)
    return settings


def pool_blocks(manifests: list[Manifest]) -> dict[str, str]:
    """Return the keys of a pool's sources (`sample.pool[0]`) and of models that only they use, by fingerprint."""
    blocks: dict[str, str] = {}
    inputs_of = {m["fingerprint"]: m["inputs"] for m in manifests}
    trained = {m["inputs"]["base"]["fingerprint"] for m in manifests if m["stage"] == "sft"}
    for pool in manifests:
        if pool["stage"] != "pool":
            continue
        sources = [entry for role, entry in pool["inputs"].items() if role != "policy"]
        for i, source in enumerate(sources):
            blocks.setdefault(source["fingerprint"], f"sample.pool[{i}]")
            model = inputs_of.get(source["fingerprint"], {}).get("policy", {})
            if model.get("stage") == "base" and model["fingerprint"] not in trained:
                blocks.setdefault(model["fingerprint"], f"sample.pool[{i}].model")
    return blocks


def source_blocks(manifests: list[Manifest]) -> dict[str, str]:
    """Return the keys of data sources (`data.sources[0]`) and of an evaluation's own data, by fingerprint."""
    blocks: dict[str, str] = {}
    for m in manifests:
        if m["stage"] != "data":
            continue
        data = Data(path=m["config"].get("path"), of=m["config"].get("of"))
        if data.of:
            blocks[m["fingerprint"]] = data.of
        for role, source in m["inputs"].items():
            place = int(role.removeprefix("source_")) - 1
            blocks[source["fingerprint"]] = data.block(place)
    return blocks


def without_seeds(settings: dict[str, str]) -> dict[str, str]:
    blocks = (*SEEDED_BLOCKS, "control")
    return {
        key: value
        for key, value in settings.items()
        if not (key.endswith(".seed") and key.partition(".")[0] in blocks)
    }


@dataclass
class SettingDifferences:
    """The differences between several sets of settings."""

    rows: list[dict[str, str]]

    @cached_property
    def varying(self) -> list[tuple[list[str], tuple[str, ...]]]:
        """The settings that differ, with their values by row. Settings that always change together are joined."""
        keys_by_values: dict[tuple[str, ...], list[str]] = {}
        for key in sorted(set[str]().union(*self.rows)):
            values = tuple(row.get(key, ABSENT) for row in self.rows)
            if len(set(values)) > 1:
                keys_by_values.setdefault(values, []).append(key)
        return [(keys, values) for values, keys in keys_by_values.items()]

    @cached_property
    def common(self) -> dict[str, str]:
        """The value of each differing setting that more than half of the rows share."""
        common = {}
        for keys, values in self.varying:
            value, rows = Counter(values).most_common(1)[0]
            if 2 * rows > len(values):
                common[joint_name(keys)] = value
        return common

    @property
    def lines(self) -> list[str]:
        """The differing settings of each row without the common values: `dpo.beta=0.05, no sample`."""
        lines = []
        for i, row in enumerate(self.rows):
            blocks = {key.partition(".")[0] for key in row}
            present = {}
            absent = set()
            for keys, values in self.varying:
                name = joint_name(keys)
                block = keys[0].partition(".")[0]
                if values[i] == self.common.get(name):
                    continue
                if block in blocks:
                    present[name] = values[i]
                else:
                    absent.add(f"no {block}")
            texts = [settings_text(present), *sorted(absent)]
            lines.append(", ".join(filter(None, texts)))
        return lines


def joint_name(keys: list[str]) -> str:
    """Return one name for settings that change together: their names, or their common last part (`precision`)."""
    if len(keys) <= 3:
        return ", ".join(keys)
    names = {key.rpartition(".")[2] for key in keys}
    if len(names) == 1:
        return names.pop()
    return f"{keys[0]}, {keys[1]} and {len(keys) - 2} more"


def settings_text(settings: dict[str, str]) -> str:
    """Return settings as `dpo.beta=0.05, dpo.seed=sft.seed=1`."""
    texts = []
    for key, value in settings.items():
        short = value if len(value) <= LONGEST else f"{value[:LONGEST]}…"
        texts.append(f"{key.replace(', ', '=')}={short}")
    return ", ".join(texts)
