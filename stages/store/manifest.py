"""The manifest of a published node: its shape, and its files against the digests in it."""

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from stages.config.errors import visible
from stages.store.sealed_json import Damaged, file_digests, load_json, warn_once
from stages.store.workspace import LOGS

COMMIT = re.compile(r"[0-9a-f]{40}")  # which a hub repository is pinned to

Manifest = dict[str, Any]
WEIGHTS = ".safetensors"
NUMBER = (int, float)
# The keys that every manifest has, and the shape of each: a type, or a mapping of any names to a shape.
KEYS: dict[str, Any] = {
    "stage": str,
    "fingerprint": str,
    "version": int,
    "roots": {"": str},
    "config": {"": object},
    "settings": {"": object},
    "inputs": {"": {"stage": str, "fingerprint": str, "digest": str}},
    "digest": str,
    "files": {"": {"bytes": int, "sha256": str}},
    "metrics": {"": object},
    "ended": NUMBER,
}
# Keys that some manifests lack, as those of earlier versions.
OPTIONAL_KEYS: dict[str, Any] = {
    "command": str,
    "device": str,
    "attempts": [{"started": NUMBER}],
    "started": NUMBER,
    "wall_seconds": NUMBER,
    "peak_memory": NUMBER,
    "peak_gpu_memory": NUMBER,
    "warnings": [str],
    "versions": {"": str},
    "lengths": {"": {"": object}},
}


OPTIONAL_METRICS = dict.fromkeys(
    ("tokens", "parameters", "pairs", "prompts", "candidates"), NUMBER
)  # that plans count with


def manifest_of(folder: Path) -> Manifest:
    """Return the manifest of a published node. Raises Damaged where it cannot be read."""
    try:
        return load_json(folder / "manifest.json", validate_manifest)
    except FileNotFoundError as error:
        raise Damaged(folder / "manifest.json", "it is missing") from error


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a node, or None where none is published; an unreadable one counts as none, with a
    warning."""
    try:
        return manifest_of(folder) if (folder / "manifest.json").exists() else None
    except Damaged as error:
        warn_once(str(error))
        return None


def validate_manifest(value: Any) -> Manifest:
    """Return a manifest as it was read. Raises ValueError, naming the key, where a value has another shape."""
    require_shape(value, KEYS, "the manifest")
    for part, optional in ((value, OPTIONAL_KEYS), (value["metrics"], OPTIONAL_METRICS)):
        require_shape(part, {key: shape for key, shape in optional.items() if part.get(key) is not None}, "it")
    for name in value["files"]:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or visible(name) != name:
            raise ValueError(f"files: {name!r:.100} is no file of the node")
    return value  # type: ignore[no-any-return]


def require_shape(value: Any, shape: Any, key: str) -> None:
    """Raise ValueError where a value is not of a shape: a type, several, a list of one shape, a mapping with these
    keys, or under the key '' one of any names to one shape."""
    match shape:
        case dict():
            if not isinstance(value, dict):
                raise ValueError(f"{key} is not an object")
            for name, inner in shape.items():
                if name and name not in value:
                    raise ValueError(f"{key} lacks {name}")
                for inner_name in [name] if name else value:
                    require_shape(value[inner_name], inner, inner_name)
        case [inner]:
            if not isinstance(value, list):
                raise ValueError(f"{key} is not a list")
            for each in value:
                require_shape(each, inner, key)
        case _:
            infinite = isinstance(value, float) and not math.isfinite(value)
            if not isinstance(value, shape) or (shape is not object and (infinite or isinstance(value, bool))):
                raise ValueError(f"{key} is {value!r:.60}")


def check_files(folder: Path, manifest: Manifest, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield these files of a published node, each with what is wrong with it: '' where nothing is."""
    if digest_of(manifest["files"]) != manifest["digest"]:
        yield "manifest.json", "its digests contradict each other"
    paths = {name: folder / name for name in names if (folder / name).is_file()}
    digests = dict(zip(paths, file_digests(paths.values()), strict=True))
    for name in names:
        same = digests.get(name) == manifest["files"][name]["sha256"]
        yield name, "" if same else "it is not what was published" if name in paths else "it is missing"


def digest_of(entries: dict[str, dict[str, Any]]) -> str:
    """Return what a node holds, in one digest of its files; its logs, of curves and of samples, are no product."""
    products = sorted((name, entry["sha256"]) for name, entry in entries.items() if name not in LOGS)
    return hashlib.sha256(json.dumps(products).encode()).hexdigest()
