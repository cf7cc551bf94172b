"""Settings of nodes as a user knows them: one flat table, in which files go by their names."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.pipeline.graph import SEEDED
from stages.store.manifest import Manifest

Nodes = dict[tuple[str, str], tuple[Path, Manifest]]  # by stage and fingerprint
BLOCKS = {"base": "model"}  # else a stage's settings stand in the block of its name
LONGEST = 40  # characters of a value in a line of settings


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    before = f"{prefix}." if prefix else ""
    return {key: v for name, inner in value.items() for key, v in flat(inner, before + name).items()}


def named(settings: Any, config: Any, key: str = "") -> Iterator[tuple[str, Any, str]]:
    """Key, value and what to call it. `settings` make the fingerprint and hold the digest of every local file;
    `config`, of the same shape, holds its path."""
    if isinstance(settings, dict):
        for name, inner in settings.items():
            given = config.get(name) if isinstance(config, dict) else None
            yield from named(inner, given, f"{key}.{name}" if key else name)
    elif isinstance(settings, list) and any(isinstance(item, dict) for item in settings):
        for i, item in enumerate(settings):
            yield from named(item, config[i] if isinstance(config, list) else None, f"{key}[{i}]")
    elif isinstance(settings, str) and isinstance(config, str) and settings != config:
        yield key, settings, Path(config).name
    else:
        yield key, settings, shown(settings)


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)


def lineage(nodes: Nodes, *starts: tuple[str, str]) -> list[Manifest]:
    """What these nodes descend from, and they themselves, the nearest first, as far as the store still has it."""
    found: dict[tuple[str, str], Manifest] = {}
    waiting = list(starts)
    while waiting:
        key = waiting.pop(0)
        if key in nodes and key not in found:
            found[key] = nodes[key][1]
            waiting += [(given["stage"], given["fingerprint"]) for given in nodes[key][1]["inputs"].values()]
    return list(found.values())


def of_lineage(manifests: list[Manifest]) -> dict[str, str]:
    """The settings of all of them, by key (`dpo.beta`). Of several rounds, those of the last are told."""
    settings: dict[str, str] = {}
    one_of_several = in_pool(manifests) | of_sources(manifests)
    for m in manifests:
        block = one_of_several.get(m["fingerprint"], BLOCKS.get(str(m["stage"]), str(m["stage"])))
        block = "control" if m["settings"].get("control") else block
        found = named({"version": m["version"], **m["settings"]}, {"version": m["version"], **m["config"]}, block)
        # Files of one name may differ: the first digits of a file's digest stand beside it.
        told = {key: name if name == shown(value) else f"{name} ({value[:6]})" for key, value, name in found}
        settings = told | settings
    return settings


def in_pool(manifests: list[Manifest]) -> dict[str, str]:
    """By fingerprint, what the sources of a pool are called on the command line (`sample.pool[0]`), and models that
    they alone name."""
    found, known = dict[str, str](), {m["fingerprint"]: m for m in manifests}
    trained = {m["inputs"]["base"]["fingerprint"] for m in manifests if m["stage"] == "sft"}
    for pool in (m for m in manifests if m["stage"] == "pool"):
        sources = [given["fingerprint"] for role, given in pool["inputs"].items() if role != "policy"]
        for i, source in enumerate(sources):
            found.setdefault(source, f"sample.pool[{i}]")
            model = known[source]["inputs"].get("policy", {}) if source in known else {}
            if model.get("stage") == "base" and model["fingerprint"] not in trained:
                found.setdefault(model["fingerprint"], f"sample.pool[{i}].model")
    return found


def of_sources(manifests: list[Manifest]) -> dict[str, str]:
    """By fingerprint, what the sources that data joined are called on the command line (`data.sources[0]`), and what
    the data are called that only the evaluation reads."""
    found = dict[str, str]()
    for data in (m for m in manifests if m["stage"] == "data"):
        of = data["config"].get("of")
        found |= {data["fingerprint"]: of} if of else {}
        for role, source in data["inputs"].items():
            found[source["fingerprint"]] = f"{of or 'data.sources'}[{int(role.removeprefix('source_')) - 1}]"
    return found


def unseeded(settings: dict[str, str]) -> dict[str, str]:
    def is_seed(key: str) -> bool:
        return key.endswith(".seed") and key.partition(".")[0] in (*SEEDED, "control")

    return {key: value for key, value in settings.items() if not is_seed(key)}


@dataclass
class Differing:
    """In what several lists of settings differ."""

    rows: list[dict[str, str]]

    @property
    def together(self) -> list[tuple[list[str], tuple[str, ...]]]:
        """The settings that differ between the rows, and their values; those that always move together are one."""
        found: dict[tuple[str, ...], list[str]] = {}
        for key in sorted({key for row in self.rows for key in row}):
            values = tuple(row.get(key, "–") for row in self.rows)
            if len(set(values)) > 1:
                found.setdefault(values, []).append(key)
        return [(keys, values) for values, keys in found.items()]

    @property
    def columns(self) -> dict[str, list[str]]:
        """By what they are called."""
        return {several(keys): list(values) for keys, values in self.together}

    @property
    def usual(self) -> dict[str, str]:
        """What more than half of the rows have of the settings that differ."""
        most = {key: Counter(values).most_common(1)[0] for key, values in self.columns.items()}
        return {key: value for key, (value, rows) in most.items() if 2 * rows > len(self.rows)}

    @property
    def lines(self) -> list[str]:
        """Of each row, `dpo.beta=0.05, no sample`: in what it differs from the others, but for what is usual."""
        usual, told = self.usual, []
        for i, row in enumerate(self.rows):
            its = {key.partition(".")[0] for key in row}
            own = {(keys[0].partition(".")[0], several(keys)): values[i] for keys, values in self.together}
            own = {key: value for key, value in own.items() if value != usual.get(key[1])}
            here = words({name: value for (stage, name), value in own.items() if stage in its})
            absent = [f"no {stage}" for stage in sorted({stage for stage, _ in own} - its)]
            told.append(", ".join([*([here] if here else []), *absent]))
        return told


def several(keys: list[str]) -> str:
    """A name for settings that move together: theirs, or what they have in common (`precision`)."""
    if len(keys) <= 3:
        return ", ".join(keys)
    names = {key.rpartition(".")[2] for key in keys}
    return names.pop() if len(names) == 1 else f"{keys[0]}, {keys[1]} and {len(keys) - 2} more"


def words(settings: dict[str, str]) -> str:
    """`dpo.beta=0.05, dpo.seed=sft.seed=1`"""
    short = {key: value if len(value) <= LONGEST else f"{value[:LONGEST]}…" for key, value in settings.items()}
    return ", ".join(f"{key.replace(', ', '=')}={value}" for key, value in short.items())
