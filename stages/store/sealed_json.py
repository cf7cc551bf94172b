"""What we write for ourselves and read again: notes as JSON, and folders sealed by the digests of their files.

A kill never leaves half of one, but a disk or a hand may. What cannot be read is not trusted and not in the way. In
scratch it is set aside, said, and made again; in a published node the error names the file and what builds it again.
"""

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
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from stages.config.errors import UserError
from stages.config.installation import arguments_of, program
from stages.store import safe_files

log = logging.getLogger(__name__)

T = TypeVar("T")
OUTPUTS = "PLUMBLINE_OUTPUTS"  # the environment's variable for the store where `outputs=` is not typed
MAX_NOTE_BYTES = 1 << 27  # bytes; a cache of 100,000 digests has some ten million
SEAL = "complete.json"  # in a folder: the digests of its files, written when they are all there
NODE = re.compile(r"[0-9a-f]{12}")  # how the folder of a published node is named
WRONG_SHAPE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, IsADirectoryError)


class Damaged(UserError):
    """A file of ours does not hold what we wrote."""

    def __init__(self, path: Path, reason: object):
        node = next((p for p in path.parents if NODE.fullmatch(p.name)), None)
        way_out = f" {rebuild_command(node)} builds it again." if node else ""
        super().__init__(f"{path} is damaged: {' '.join(str(reason).split())[:200]}.{way_out}")


def rebuild_command(node: Path) -> str:
    """Return the command that builds a published node again, in the store that its folder lies in now."""
    stage, root = node.parent.name, node.parent.parent
    try:
        words = arguments_of(json.loads(read_text(node / "manifest.json"))["command"])
    except (OSError, *WRONG_SHAPE):
        words = [f"stage={stage}"]
    typed_roots = [word.removeprefix("outputs=") for word in words if word.startswith("outputs=")]
    default_root = Path(typed_roots[-1] if typed_roots else os.environ.get(OUTPUTS) or "outputs")
    if default_root.resolve() != root.resolve():
        words = [*(word for word in words if not word.startswith("outputs=")), f"outputs={root}"]
    return shlex.join([*program(), *words, f"rebuild={stage}"])


@cache
def warn_once(message: str) -> None:
    """What is found again at every look is said once in a process."""
    log.warning("warning: %s", message)


def require_keys(*keys: str) -> Callable[[Any], dict[str, Any]]:
    """The shape of a JSON object with at least these keys."""

    def validate(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or (missing_keys := [key for key in keys if key not in value]):
            raise ValueError(f"lacks {', '.join(missing_keys)}" if isinstance(value, dict) else "no JSON object")
        return value

    return validate


def read_text(path: Path) -> str:
    """Return the text of a note. Raises ValueError for a file that is none, as a pipe, which may never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > MAX_NOTE_BYTES:
        raise ValueError(f"{status.st_size:,} bytes, more than any note has")
    return path.read_text(encoding="utf-8")


def load_json(path: Path, shape: Callable[[Any], T]) -> T:
    """JSON that we wrote, as `shape` takes it. Raises Damaged where it does not take it; FileNotFoundError."""
    try:
        return shape(json.loads(read_text(path)))
    except WRONG_SHAPE as error:
        raise Damaged(path, error) from error


def read_note(path: Path, shape: Callable[[Any], T]) -> T | None:
    """What was noted down earlier; None where nothing was, or nothing that can be read: that is set aside."""
    try:
        return load_json(path, shape)
    except FileNotFoundError:
        return None
    except Damaged as error:
        move_aside(path, error)
        return None


def write_note(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    safe_files.write(path, json.dumps(value))


def move_aside(path: Path, reason: object) -> None:
    unreadable = path.with_name(f"{path.name}.unreadable")
    remove(unreadable)
    try:
        path.rename(unreadable)
    except FileNotFoundError:
        return  # by another process of this stage
    log.warning("warning: %s It is set aside as %s, and made again.", reason, unreadable.name)


def remove(path: Path) -> None:
    """A file, or a folder with all in it, if it is there. A link goes, and what it leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def seal(folder: Path) -> None:
    """Make a finished folder durable, and note the digests of its files in it."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)
    write_note(folder / SEAL, digests_of(folder))


def seal_problem(folder: Path) -> str:
    """Why a folder is not what was sealed; '' where it is."""
    try:
        sealed = load_json(folder / SEAL, require_keys())
    except FileNotFoundError:
        return "it was not finished"
    except Damaged:
        return f"{SEAL} cannot be read"
    digests = digests_of(folder)
    differing = sorted(name for name in sealed | digests if sealed.get(name) != digests.get(name))
    return f"{differing[0]} is not what was saved" if differing else "" if digests else "it is empty"


def digests_of(folder: Path) -> dict[str, str]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / SEAL)
    return {str(path.relative_to(folder)): file_digest(path) for path in paths}


def replace_folder(fresh: Path, folder: Path) -> None:
    """Put a finished folder where there may be an older one. Killed at any point, one of them is whole."""
    replaced = folder.with_suffix(".replaced")
    if folder.exists():
        remove(replaced)
        os.rename(folder, replaced)
    os.rename(fresh, folder)
    sync(folder.parent)
    remove(replaced)


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(paths: Collection[Path]) -> list[str]:
    """Return the digest of each file: on every core, since hashing needs no lock of Python's."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return [*threads.map(file_digest, paths)]


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
