"""The manifest of a published node: the check of its shape, and of the node's files against their digests."""

import hashlib
import json
import re
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from stages.config.errors import visible
from stages.config.installation import program, recorded_settings
from stages.store.sealed_json import (
    NODE,
    Damaged,
    file_digests,
    first_link,
    load_json,
    require_keys,
    warn_once,
)
from stages.store.stage_sources import EditedSource
from stages.store.workspace import COLUMNS, LOGS

COMMIT = re.compile(r"[0-9a-f]{40}")  # a commit of a hub repository
STAGE = re.compile(r"[a-z_]+")  # also of a stage that another version had

Manifest = dict[str, Any]
WEIGHTS = ".safetensors"
KEYS = [
    "stage",
    "fingerprint",
    "version",
    "roots",
    "config",
    "settings",
    "inputs",
    "digest",
    "files",
    "metrics",
    "ended",
]


def manifest_of(folder: Path) -> Manifest:
    """Return the manifest of a published node. Raise Damaged if it cannot be read, or if a link in the node leads
    elsewhere: no stage makes one."""
    link = first_link(folder)
    if link:
        raise Damaged(link, "it is a link")
    try:
        return load_json(folder / "manifest.json", validate_manifest)
    except FileNotFoundError as error:
        raise Damaged(folder / "manifest.json", "it is missing") from error


def folder_problem(folder: Path) -> str:
    """Return why a folder with the name of a node is not that node, and what to do; '' if it is."""
    if not (folder / "manifest.json").exists():
        return (
            f"{folder} has no manifest.json, so its node counts as not built. The command that made it builds it "
            "again. If nothing needs it, delete the folder."
        )
    try:
        manifest = manifest_of(folder)
    except Damaged as error:
        return str(error)
    owner = f"{manifest['stage']}/{manifest['fingerprint']}"
    if owner == f"{folder.parent.name}/{folder.name}":
        return ""
    return f"{folder} has the manifest of {visible(owner)[:100]}. Rename the folder, or delete it."


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a node, or None if it is not published, or after a warning if it cannot be read."""
    try:
        return manifest_of(folder) if (folder / "manifest.json").exists() else None
    except Damaged as error:
        warn_once(str(error))
        return None


def command_of(manifest: Manifest) -> str:
    """Return the command that a manifest records, or that of its stage alone if the text is no such command. The shell
    takes every setting in it as text."""
    try:
        settings = recorded_settings(manifest.get("command"))
    except ValueError:
        settings = [f"stage={manifest['stage']}"]
    return shlex.join([*program(), *settings])


def validate_manifest(value: Any) -> Manifest:
    """Return a parsed manifest unchanged. Raise an error of WRONG_SHAPE if a key is missing or has another type, or if
    a file is not in the node, or an input not in the store."""
    manifest = require_keys(*KEYS)(value)
    require_node_name(manifest)
    for key in ("roots", "config", "settings", "inputs", "files", "metrics"):
        require_keys()(manifest[key])
    for entry in manifest["inputs"].values():
        require_node_name(require_keys("stage", "fingerprint", "digest")(entry))
    edited_source(manifest)
    for name, entry in manifest["files"].items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or visible(name) != name:
            raise ValueError(f"files: {name!r:.100} is not a path inside the node")
        require_keys("bytes", "sha256")(entry)
    if not isinstance(manifest["ended"], int | float):
        raise TypeError("ended is not a time")
    return manifest


def require_node_name(names: dict[str, Any]) -> None:
    """Raise an error of WRONG_SHAPE unless stage and fingerprint are names of folders of the store."""
    for key, pattern in (("stage", STAGE), ("fingerprint", NODE)):
        if not pattern.fullmatch(names[key]):
            raise ValueError(f"{key}: {names[key]!r:.100} is not the name of a node's folder")


def edited_source(manifest: Manifest) -> EditedSource | None:
    """Return the source that a node's stage had if it was not the recorded one."""
    if "edited" not in manifest:
        return None
    entry = require_keys("digest", "files")(manifest["edited"])
    return EditedSource(str(entry["digest"]), [*map(str, entry["files"])])


def check_files(
    folder: Path, manifest: Manifest, names: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield the name of each damaged one of these files of a published node, with its problem in words."""
    if digest_of(manifest["files"]) != manifest["digest"]:
        yield "manifest.json", "its digests do not fit each other"
    paths = {name: folder / name for name in names if (folder / name).is_file()}
    digests = dict(zip(paths, file_digests(paths.values()), strict=True))
    for name in names:
        if name not in paths:
            yield name, "it is missing"
        elif digests[name] != manifest["files"][name]["sha256"]:
            yield name, "its content has changed since it was published"


def digest_of(entries: dict[str, dict[str, Any]]) -> str:
    """Return one digest for all files of a node. Logs (curves and samples) are not part of the result. The user's columns
    are not counted: a node that was built before they were kept has the same tables without them."""
    uncounted = {*LOGS, COLUMNS}
    products = sorted(
        (name, entry["sha256"]) for name, entry in entries.items() if name not in uncounted
    )
    return hashlib.sha256(json.dumps(products).encode()).hexdigest()
