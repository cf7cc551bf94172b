"""The settings of nodes under the keys that users type, as flat dicts, with files shown by name."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
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
    return f"{value:g}" if isinstance(value, float) else ABSENT if value is None else str(value)


def lineage(nodes: Nodes, *starts: tuple[str, str]) -> list[Manifest]:
    """Return the manifests of these nodes and of their ancestors in the store, the nearest first."""
    manifests: dict[tuple[str, str], Manifest] = {}
    waiting = list(starts)
    while waiting:
        key = waiting.pop(0)
        if key in nodes and key not in manifests:
            manifests[key] = nodes[key][1]
            waiting += [
                (entry["stage"], entry["fingerprint"]) for entry in nodes[key][1]["inputs"].values()
            ]
    return list(manifests.values())


def lineage_settings(manifests: list[Manifest]) -> dict[str, str]:
    """Return the settings of these nodes by key (`dpo.beta`). Of several rounds, the last one counts."""
    settings: dict[str, str] = {}
    one_of_several = pool_blocks(manifests) | source_blocks(manifests)
    for m in manifests:
        block = one_of_several.get(m["fingerprint"], BLOCKS.get(str(m["stage"]), str(m["stage"])))
        block = "control" if m["stage"] == "sft" and m["settings"].get("control") else block
        version = {"version": m["version"]}
        named = [*named_settings(version | m["settings"], version | m["config"], block)]
        # Two files may have the same name, so the first digits of the digest are shown, too.
        values = {
            key: name if name == format_value(value) else f"{name} ({value[:6]})"
            for key, value, name in named
        }
        settings = values | settings
    return settings


def pool_blocks(manifests: list[Manifest]) -> dict[str, str]:
    """Return the keys of a pool's sources (`sample.pool[0]`) and of models that only they use, by fingerprint."""
    blocks, by_fingerprint = dict[str, str](), {m["fingerprint"]: m for m in manifests}
    trained = {m["inputs"]["base"]["fingerprint"] for m in manifests if m["stage"] == "sft"}
    for pool in (m for m in manifests if m["stage"] == "pool"):
        sources = [
            entry["fingerprint"] for role, entry in pool["inputs"].items() if role != "policy"
        ]
        for i, source in enumerate(sources):
            blocks.setdefault(source, f"sample.pool[{i}]")
            model = (
                by_fingerprint[source]["inputs"].get("policy", {})
                if source in by_fingerprint
                else {}
            )
            if model.get("stage") == "base" and model["fingerprint"] not in trained:
                blocks.setdefault(model["fingerprint"], f"sample.pool[{i}].model")
    return blocks


def source_blocks(manifests: list[Manifest]) -> dict[str, str]:
    """Return the keys of data sources (`data.sources[0]`) and of an evaluation's own data, by fingerprint."""
    blocks = dict[str, str]()
    for data in (m for m in manifests if m["stage"] == "data"):
        list_key, path = data["config"].get("of"), data["config"].get("path")
        blocks |= {data["fingerprint"]: list_key} if list_key else {}
        for role, source in data["inputs"].items():
            place = int(role.removeprefix("source_")) - 1
            blocks[source["fingerprint"]] = Data(path=path, of=list_key).block(place)
    return blocks


def without_seeds(settings: dict[str, str]) -> dict[str, str]:
    blocks = (*SEEDED_BLOCKS, "control")
    return {
        k: v
        for k, v in settings.items()
        if not (k.endswith(".seed") and k.partition(".")[0] in blocks)
    }


@dataclass
class SettingDifferences:
    """The differences between several sets of settings."""

    rows: list[dict[str, str]]

    @property
    def varying(self) -> list[tuple[list[str], tuple[str, ...]]]:
        """The settings that differ, with their values by row. Settings that always change together are joined."""
        keys_by_values: dict[tuple[str, ...], list[str]] = {}
        for key in sorted({key for row in self.rows for key in row}):
            values = tuple(row.get(key, ABSENT) for row in self.rows)
            if len(set(values)) > 1:
                keys_by_values.setdefault(values, []).append(key)
        return [(keys, values) for values, keys in keys_by_values.items()]

    @property
    def common(self) -> dict[str, str]:
        """The value of each differing setting that more than half of the rows share."""
        most = {
            joint_name(keys): Counter(values).most_common(1)[0] for keys, values in self.varying
        }
        return {key: value for key, (value, rows) in most.items() if 2 * rows > len(self.rows)}

    @property
    def lines(self) -> list[str]:
        """The differing settings of each row without the common values: `dpo.beta=0.05, no sample`."""
        common, lines = self.common, []
        for i, row in enumerate(self.rows):
            blocks = {key.partition(".")[0] for key in row}
            row_values = {
                (keys[0].partition(".")[0], joint_name(keys)): values[i]
                for keys, values in self.varying
            }
            row_values = {
                key: value for key, value in row_values.items() if value != common.get(key[1])
            }
            text = settings_text(
                {name: value for (stage, name), value in row_values.items() if stage in blocks}
            )
            absent = [
                f"no {stage}" for stage in sorted({stage for stage, _ in row_values} - blocks)
            ]
            lines.append(", ".join([*([text] if text else []), *absent]))
        return lines


def joint_name(keys: list[str]) -> str:
    """Return one name for settings that change together: their names, or their common last part (`precision`)."""
    if len(keys) <= 3:
        return ", ".join(keys)
    names = {key.rpartition(".")[2] for key in keys}
    return names.pop() if len(names) == 1 else f"{keys[0]}, {keys[1]} and {len(keys) - 2} more"


def settings_text(settings: dict[str, str]) -> str:
    """Return settings as `dpo.beta=0.05, dpo.seed=sft.seed=1`."""
    short = {
        key: value if len(value) <= LONGEST else f"{value[:LONGEST]}…"
        for key, value in settings.items()
    }
    return ", ".join(f"{key.replace(', ', '=')}={value}" for key, value in short.items())
