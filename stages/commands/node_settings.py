"""The settings of nodes under the keys that users type, as flat dicts of texts, and in which of them runs differ."""

from pathlib import Path
from typing import Any

from stages.config.blocks.data import Data
from stages.config.errors import shortened
from stages.pipeline.graph import SEEDED_BLOCKS
from stages.store.manifest import Manifest, edited_source
from stages.store.stage_sources import EditedSource
from stages.store.store import Store

Nodes = dict[tuple[str, str], tuple[Path, Manifest]]  # by stage and fingerprint
# in a store's root: the page of compared evaluations, whose nodes `stage=gc` keeps
COMPARE_PAGE = "compare.html"
Column = tuple[str | None, ...]  # a value of each run
BLOCKS = {"base": "model"}  # other stages have a block of their name
ABSENT = "–"  # the value of a key that a run does not have
LONGEST_VALUE = 40  # characters; longer values are cut off in a line of settings


def values_by_key(value: Any, key: str) -> dict[str, Any]:
    """Return the values of nested dicts, and of lists of dicts, by key (`endpoints[0].model`)."""
    parts: dict[str, Any] = {}
    if isinstance(value, dict):
        parts = {f"{key}.{name}".removeprefix("."): part for name, part in value.items()}
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        parts = {f"{key}[{i}]": part for i, part in enumerate(value)}
    else:
        return {key: value}
    values: dict[str, Any] = {}
    for name, part in parts.items():
        values |= values_by_key(part, name)
    return values


def shown_settings(with_digests: Any, with_paths: Any, block: str = "") -> dict[str, str]:
    """Return each key with its value as text. Of a file, `with_digests` has the digest, as the fingerprint has it, and
    `with_paths` the path. The text has the file's name and six digits of the digest."""
    paths = values_by_key(with_paths, block)
    shown = {}
    for key, value in values_by_key(with_digests, block).items():
        path = paths.get(key)
        shown[key] = ABSENT if value is None else str(value)
        if isinstance(value, str) and isinstance(path, str) and value != path:
            shown[key] = f"{Path(path).name} ({value[:6]})"
    return shown


def shown_source(version: int, edited: EditedSource | None) -> dict[str, str]:
    """Return a stage's version, and of an edited source the files with six digits of its digest, as texts by key."""
    shown = {"version": str(version)}
    if edited:
        shown["edited"] = f"{edited} ({edited.digest[:6]})"
    return shown


def nodes_oldest_first(store: Store) -> Nodes:
    """Return the folders and manifests of all published nodes, the oldest first."""
    return {(m["stage"], m["fingerprint"]): (folder, m) for folder, m in store.manifests()}


def lineage(nodes: Nodes, *starts: tuple[str, str]) -> list[Manifest]:
    """Return the manifests of these nodes and of their ancestors in the store, the nearest first."""
    nearest_first: dict[tuple[str, str], Manifest] = {}
    waiting = list(starts)
    while waiting:
        key = waiting.pop(0)
        if key in nodes and key not in nearest_first:
            nearest_first[key] = nodes[key][1]
            for entry in nearest_first[key]["inputs"].values():
                waiting.append((entry["stage"], entry["fingerprint"]))
    return list(nearest_first.values())


def lineage_settings(nearest_first: list[Manifest]) -> dict[str, str]:
    """Return the settings of these nodes by key (`dpo.beta`). Of several rounds, the last one counts."""
    settings: dict[str, str] = {}
    blocks = blocks_of_list_entries(nearest_first)
    for m in nearest_first:
        stage = str(m["stage"])
        block = blocks.get(m["fingerprint"], BLOCKS.get(stage, stage))
        if stage == "sft" and m["settings"].get("control"):
            block = "control"
        source = shown_source(m["version"], edited_source(m))
        shown = {f"{block}.{key}": value for key, value in source.items()}
        shown |= shown_settings(m["settings"], m["config"], block)
        settings = shown | settings  # of several rounds the last one counts
    return settings


def blocks_of_list_entries(manifests: list[Manifest]) -> dict[str, str]:
    """Return by fingerprint the keys of what a list has: the sources of data (`data.sources[0]`), those of candidates
    (`sample.pool[0]`), and the models that only these use. Data that an evaluation alone reads has a key, too."""
    blocks: dict[str, str] = {}
    inputs_of = {m["fingerprint"]: m["inputs"] for m in manifests}
    trained_bases = [m["inputs"]["base"]["fingerprint"] for m in manifests if m["stage"] == "sft"]
    for m in manifests:
        data = Data(path=m["config"].get("path"), of=m["config"].get("of"))
        if m["stage"] == "data" and data.of:  # only an evaluation reads it
            blocks[m["fingerprint"]] = data.of
        for role, source in m["inputs"].items():
            if not role.startswith("source_"):
                continue
            i = int(role.removeprefix("source_")) - 1
            block = f"sample.pool[{i}]" if m["stage"] == "pool" else data.source_setting(i)
            blocks.setdefault(source["fingerprint"], block)
            sampled = inputs_of.get(source["fingerprint"], {}).get("policy")
            if (
                sampled
                and sampled["stage"] == "base"
                and sampled["fingerprint"] not in trained_bases
            ):
                blocks.setdefault(sampled["fingerprint"], f"{block}.model")
    return blocks


def without_seeds(settings: dict[str, str]) -> dict[str, str]:
    seeded = (*SEEDED_BLOCKS, "control")
    others = {}
    for key, value in settings.items():
        if not (key.endswith(".seed") and key.partition(".")[0] in seeded):
            others[key] = value
    return others


def varying(runs: list[dict[str, str]]) -> dict[str, Column]:
    """Return the settings that differ between runs, with the value of each run. A run without the key's block has no
    value, which is no difference."""
    columns: dict[str, Column] = {}
    for key in sorted(set[str]().union(*runs)):
        values = tuple(value_in_block(run, key) for run in runs)
        values_of_runs_with_block = {*values} - {None}
        if len(values_of_runs_with_block) > 1:
            columns[key] = values
    return columns


def value_in_block(run: dict[str, str], key: str) -> str | None:
    """Return a run's value of a key, ABSENT without it; None if the run has no key of its block."""
    block = key.partition(".")[0]
    has_block = any(name.startswith(f"{block}.") for name in run)
    if not has_block:
        return None
    return run.get(key, ABSENT)


def settings_text(settings: dict[str, str]) -> str:
    """Return settings as `dpo.beta=0.05, sft.epochs=1`."""
    texts = []
    for key, value in settings.items():
        texts.append(f"{key}={shortened(value, LONGEST_VALUE)}")
    return ", ".join(texts)
