"""Digests of files, with a cache for files that have not changed: to hash gigabytes takes seconds."""

import json
from collections.abc import Iterable
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.store import safe_files
from stages.store.sealed_json import file_digest, read_note

Signature = list[int]


def signature(file: Path) -> Signature:
    """Return a file's size, its mtime and ctime in nanoseconds, and its inode. Users cannot set the ctime."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def files_of(path: Path) -> list[Path]:
    """Return the file itself, all files in a folder but the hidden ones, or all files that match a pattern."""
    if is_pattern(path):
        return sorted(p for p in map(Path, glob(str(path), recursive=True)) if p.is_file())
    return (
        sorted(p for p in path.rglob("*") if p.is_file() and not is_hidden(p, path))
        if path.is_dir()
        else [path]
    )


def is_hidden(file: Path, folder: Path) -> bool:
    return "/." in f"/{file.relative_to(folder)}"


def is_pattern(path: Path) -> bool:
    """Return whether a path has `*`, `?` or `[…]`, and no file has exactly this name."""
    return has_magic(str(path)) and not path.exists()


def digests(files: Iterable[Path], cache: Path) -> dict[Path, str]:
    """Return each file's SHA-256, of unchanged files from `cache`. Raise UserError if one changes while it is read."""
    cached = read_note(cache, entries) or {}
    entry_by_file: dict[Path, list[Any]] = {}
    for file in files:
        now, entry = signature(file), cached.get(str(file.resolve()))
        if entry is None or entry[:-1] != now:
            entry = [*now, file_digest(file)]
            if signature(file) != now:
                raise UserError(
                    f"{file} is still being written. Type the same command again when it is complete."
                )
        entry_by_file[file] = entry
    read = {str(file.resolve()): entry for file, entry in entry_by_file.items()}
    if any(cached.get(name) != entry for name, entry in read.items()):
        # else the next command hashes again
        safe_files.write_if_allowed(cache, json.dumps({**cached, **read}))
    return {file: entry[-1] for file, entry in entry_by_file.items()}


def entries(value: Any) -> dict[str, list[Any]]:
    """Return the valid entries of the cache, a signature and a digest by path, without those of earlier versions."""
    return {
        name: entry
        for name, entry in value.items()
        if len(entry) == 5 and len(str(entry[-1])) == 64
    }
