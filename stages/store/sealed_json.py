"""Files that the pipeline writes and reads again: notes in JSON, and folders with the digests of their files (a seal).

A kill never leaves half of a file, but a faulty disk or a person can damage one. A damaged file in a scratch folder is
moved aside with a warning, and its work is repeated. For a published node, an error names what builds it again."""

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from stages.config.errors import UserError, name_file
from stages.config.installation import program, recorded_settings
from stages.store import safe_files

log = logging.getLogger(__name__)

T = TypeVar("T")
# the environment variable with the store's folder, if `outputs=` is not typed
OUTPUTS = "PLUMBLINE_OUTPUTS"
MAX_NOTE_BYTES = 1 << 27  # a cache of 100,000 digests has about ten million bytes
SEAL = "complete.json"  # in a folder: the digests of its files, written last
NODE = re.compile(r"[0-9a-f]{12}")  # the name of a published node's folder
WRONG_SHAPE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    IsADirectoryError,
)


class Damaged(UserError):
    """The error for a file whose content is not what the pipeline wrote."""

    def __init__(self, path: Path, reason: object):
        node = next((p for p in path.parents if NODE.fullmatch(p.name)), None)
        way_out = f" To build its node again, type: {rebuild_command(node)}" if node else ""
        super().__init__(f"{path} is damaged: {' '.join(str(reason).split())[:200]}.{way_out}")


def rebuild_command(node: Path) -> str:
    """Return the command that builds a published node again, in the store that holds its folder now."""
    stage, root = node.parent.name, node.parent.parent
    try:
        words = recorded_settings(json.loads(read_text(node / "manifest.json"))["command"])
    except (OSError, *WRONG_SHAPE):
        words = [f"stage={stage}"]
    typed_roots = [word.removeprefix("outputs=") for word in words if word.startswith("outputs=")]
    default_root = Path(typed_roots[-1] if typed_roots else os.environ.get(OUTPUTS) or "outputs")
    if default_root.resolve() != root.resolve():
        words = [*(word for word in words if not word.startswith("outputs=")), f"outputs={root}"]
    return shlex.join([*program(), *words, f"rebuild={stage}"])


@cache
def warn_once(message: str) -> None:
    """Print a warning, but the same text only once in a process."""
    log.warning("warning: %s", message)


def require_keys(*keys: str) -> Callable[[Any], dict[str, Any]]:
    """Return a function that returns a JSON object unchanged if it has these keys, and raises ValueError if not."""

    def validate(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or (
            missing_keys := [key for key in keys if key not in value]
        ):
            raise ValueError(
                f"{', '.join(missing_keys)} is missing"
                if isinstance(value, dict)
                else "no JSON object"
            )
        return value

    return validate


def read_text(path: Path) -> str:
    """Return the text of a note. Raise ValueError for a pipe or another file that might never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > MAX_NOTE_BYTES:
        raise ValueError(f"it has {status.st_size:,} bytes, more than the pipeline ever writes")
    with name_file(path):
        return path.read_text(encoding="utf-8")


def load_json(path: Path, shape: Callable[[Any], T]) -> T:
    """Return what `shape` makes of a JSON file. Raise Damaged if either fails, FileNotFoundError without a file."""
    try:
        return shape(json.loads(read_text(path)))
    except WRONG_SHAPE as error:
        raise Damaged(path, error) from error


def read_note(path: Path, shape: Callable[[Any], T]) -> T | None:
    """Return the content of a note, or None if there is none. An unreadable note is moved aside and counts as none."""
    try:
        return load_json(path, shape)
    except FileNotFoundError:
        return None
    except Damaged as error:
        move_aside(path, error)
        return None


def write_note(path: Path, value: Any) -> None:
    """Write a value as JSON. A kill leaves the old file or the new one."""
    safe_files.write(path, json.dumps(value))


def move_aside(path: Path, reason: object) -> None:
    unreadable = path.with_name(f"{path.name}.unreadable")
    remove(unreadable)
    try:
        path.rename(unreadable)
    except FileNotFoundError:
        return  # another process of this stage has moved it
    log.warning(
        "warning: %s The file is renamed to %s, and its work is repeated.", reason, unreadable.name
    )


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content, if it exists. A link is removed without its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def first_link(folder: Path) -> Path | None:
    """Return a symbolic link inside a folder, or None. The folder itself may be one, to another disk."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.scandir(folder):
            path = Path(entry.path)
            if entry.is_symlink():
                return path
            if entry.is_dir():
                link = first_link(path)
                if link:
                    return link
    return None


def seal(folder: Path) -> None:
    """Sync the files of a finished folder to the disk, and write their digests into it."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)
    write_note(folder / SEAL, digests_of(folder))


def seal_problem(folder: Path) -> str:
    """Return the reason why a sealed folder cannot be used, or '' if its files are unchanged."""
    try:
        sealed = load_json(folder / SEAL, require_keys())
    except FileNotFoundError:
        return "it is not finished"
    except Damaged:
        return f"{SEAL} cannot be read"
    digests = digests_of(folder)
    differing = sorted(name for name in sealed | digests if sealed.get(name) != digests.get(name))
    empty = "" if digests else "it is empty"
    return f"the content of {differing[0]} has changed since it was saved" if differing else empty


def digests_of(folder: Path) -> dict[str, str]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / SEAL)
    return {str(path.relative_to(folder)): file_digest(path) for path in paths}


def replace_folder(fresh: Path, folder: Path) -> None:
    """Rename a finished folder, and replace an older one. A kill at any point leaves one of them complete."""
    replaced = folder.with_suffix(".replaced")
    if folder.exists():
        remove(replaced)
        os.rename(folder, replaced)
    os.rename(fresh, folder)
    sync(folder.parent)
    remove(replaced)


def file_digest(path: Path) -> str:
    with open(path, "rb") as file, name_file(path):
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(paths: Collection[Path]) -> list[str]:
    """Return the digest of each file. Threads use every core, since hashing releases Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return [*threads.map(file_digest, paths)]


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with name_file(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
