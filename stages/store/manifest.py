"""The manifest of a published node: the check of its shape, and of the node's files against their digests."""

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from stages.config.errors import visible
from stages.config.installation import read_beside
from stages.store.sealed_json import Damaged, file_digests, load_json, warn_once
from stages.store.workspace import LOGS

COMMIT = re.compile(r"[0-9a-f]{40}")  # a commit of a hub repository

Manifest = dict[str, Any]
WEIGHTS = ".safetensors"
SHAPES = read_beside(__file__)
TYPES: dict[str, Any] = {"text": str, "integer": int, "number": (int, float), "anything": object}


def manifest_of(folder: Path) -> Manifest:
    """Return the manifest of a published node. Raise Damaged if it cannot be read."""
    try:
        return load_json(folder / "manifest.json", validate_manifest)
    except FileNotFoundError as error:
        raise Damaged(folder / "manifest.json", "it is missing") from error


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a node, or None if it is not published, or after a warning if it cannot be read."""
    try:
        return manifest_of(folder) if (folder / "manifest.json").exists() else None
    except Damaged as error:
        warn_once(str(error))
        return None


def validate_manifest(value: Any) -> Manifest:
    """Return a parsed manifest unchanged. Raise ValueError, naming the key, if a value has a wrong shape."""
    require_shape(value, SHAPES["keys"], "the manifest")
    for part, optional in ((value, SHAPES["optional_keys"]), (value["metrics"], SHAPES["optional_metrics"])):
        require_shape(part, {key: shape for key, shape in optional.items() if part.get(key) is not None}, "it")
    for name in value["files"]:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or visible(name) != name:
            raise ValueError(f"files: {name!r:.100} is not a path inside the node")
    return value  # type: ignore[no-any-return]


def require_shape(value: Any, shape: Any, key: str) -> None:
    """Raise ValueError if a value does not have a shape, as the YAML file beside this one explains shapes."""
    match shape:
        case dict():
            if not isinstance(value, dict):
                raise ValueError(f"{key} is not an object")
            for name, inner in shape.items():
                if name and name not in value:
                    raise ValueError(f"{key} does not have the key {name}")
                for inner_name in [name] if name else value:
                    require_shape(value[inner_name], inner, inner_name)
        case [inner]:
            if not isinstance(value, list):
                raise ValueError(f"{key} is not a list")
            for item in value:
                require_shape(item, inner, key)
        case _:
            infinite = isinstance(value, float) and not math.isfinite(value)
            if not isinstance(value, TYPES[shape]) or (shape != "anything" and (infinite or isinstance(value, bool))):
                raise ValueError(f"{key} is {value!r:.60}, which is not of its type")


def check_files(folder: Path, manifest: Manifest, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the name of each of these files of a published node, with its problem in words, or ''."""
    if digest_of(manifest["files"]) != manifest["digest"]:
        yield "manifest.json", "its digests do not fit each other"
    paths = {name: folder / name for name in names if (folder / name).is_file()}
    digests = dict(zip(paths, file_digests(paths.values()), strict=True))
    for name in names:
        problem = "its content has changed since it was published" if name in paths else "it is missing"
        yield name, "" if digests.get(name) == manifest["files"][name]["sha256"] else problem


def digest_of(entries: dict[str, dict[str, Any]]) -> str:
    """Return one digest for all files of a node. Logs (curves and samples) are not part of the result."""
    products = sorted((name, entry["sha256"]) for name, entry in entries.items() if name not in LOGS)
    return hashlib.sha256(json.dumps(products).encode()).hexdigest()
