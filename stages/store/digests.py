"""Digests of files, remembered by what the file system says of a file: to hash gigabytes takes seconds."""

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
    """Size, times and place of a file's content. Nobody can set the second time (ctime) back."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def files_of(path: Path) -> list[Path]:
    """The file, every file in a folder, or every file that a pattern fits."""
    if is_pattern(path):
        return sorted(p for p in map(Path, glob(str(path), recursive=True)) if p.is_file())
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def is_pattern(path: Path) -> bool:
    """Whether a path is one of `*`, `?` or `[…]`, and no file of that name."""
    return has_magic(str(path)) and not path.exists()


def digests(files: Iterable[Path], cache: Path, fresh: bool = False) -> dict[Path, str]:
    """The SHA-256 of each file; those of unchanged files come from `cache`, unless they are to be `fresh`.

    Raises:
        UserError: for a file that is being written to.
    """
    cached = read_note(cache, entries) or {}
    entry_by_file: dict[Path, list[Any]] = {}
    for file in files:
        now, entry = signature(file), cached.get(str(file.resolve()))
        if fresh or entry is None or entry[:-1] != now:
            entry = [*now, file_digest(file)]
            if signature(file) != now:
                raise UserError(f"{file} is being written to. Run the command again when that is done.")
        entry_by_file[file] = entry
    read = {str(file.resolve()): entry for file, entry in entry_by_file.items()}
    if any(cached.get(name) != entry for name, entry in read.items()):
        safe_files.write_if_allowed(cache, json.dumps({**cached, **read}))  # else they are hashed again the next time
    return {file: entry[-1] for file, entry in entry_by_file.items()}


def entries(value: Any) -> dict[str, list[Any]]:
    """The shape of the cache: by path, a signature and a digest. Other entries were written by an earlier version."""
    return {name: entry for name, entry in value.items() if len(entry) == 5 and len(str(entry[-1])) == 64}
