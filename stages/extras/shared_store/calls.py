"""Exchange of recorded calls and people's journals with the remote, so that no other machine pays for them again.

A push writes the lines that the remote lacks as one object, named by its digest, and objects are never changed. Copies
of all objects lie in `outputs/cache/remote/`, so that a line is never sent or fetched twice."""

import hashlib
import re
from pathlib import Path

from stages.extras.shared_store.remote import Remote
from stages.store import json_log, locks, safe_files
from stages.store.sealed_json import WRONG_SHAPE

SEGMENT = re.compile(r"calls/((?:people/)?\w[\w. -]*\.jsonl)/([0-9a-f]{64})")


def pull_calls(remote: Remote, copies: Path, calls: Path) -> None:
    """Append to the files in `calls` the lines that other machines have recorded."""
    ages = remote.list("calls")
    # the oldest first: of two answers the last counts
    for name in sorted(ages, key=lambda name: (-ages[name], name)):
        copy = copies / name
        if (
            not (match := SEGMENT.fullmatch(name))
            or copy.exists()
            or not (current := remote.get(name))
        ):
            continue
        if hashlib.sha256(current[0]).hexdigest() == match[2]:
            safe_files.write_in_folder(copy, current[0])
    for folder in {path.parent for path in copies.glob("calls/**/*") if path.is_file()}:
        file = calls / folder.relative_to(copies / "calls")
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.parent / "people.lock" if file.parent != calls else file.with_suffix(".lock")
        if not fresh_lines(folder, file) or locks.is_held(lock):
            continue  # another command may hold the lock for days; a later command adds the lines
        with locks.hold_lock(lock, file.name, "used"), open(file, "ab") as target:
            fresh = fresh_lines(folder, file)
            cut = fresh and file.stat().st_size and not file.read_bytes().endswith(b"\n")
            # a kill came before the end of the last line
            target.write(b"\n" + fresh if cut else fresh)


def fresh_lines(folder: Path, file: Path) -> bytes:
    """Return the lines of the copies in `folder` that a file lacks."""
    own = lines_of(file)
    return b"".join(
        line + b"\n" for line in shared_lines(folder) if line not in own and is_readable(line)
    )


def unsent_calls(copies: Path, calls: Path) -> dict[str, bytes]:
    """Return the lines in `calls` that no machine has sent, by the name that their object gets."""
    segments = dict[str, bytes]()
    for file in sorted(calls.glob("**/*.jsonl")):
        name = f"calls/{file.relative_to(calls)}"
        shared = shared_lines(copies / name)
        content = b"".join(
            line + b"\n" for line in lines_of(file) if line not in shared and is_readable(line)
        )
        segment = f"{name}/{hashlib.sha256(content).hexdigest()}"
        if content and SEGMENT.fullmatch(segment):
            segments[segment] = content
    return segments


def push_calls(remote: Remote, copies: Path, segments: dict[str, bytes]) -> None:
    """Write unsent lines to the remote."""
    for segment, content in segments.items():
        remote.put(segment, content)
        safe_files.write_in_folder(copies / segment, content)


def lines_of(file: Path) -> dict[bytes, None]:
    return dict.fromkeys(file.read_bytes().splitlines() if file.exists() else [])


def shared_lines(folder: Path) -> dict[bytes, None]:
    segments = sorted(
        (path for path in folder.glob("[!.]*")), key=lambda path: path.stat().st_mtime
    )
    return {line: None for path in segments for line in lines_of(path)}


def is_readable(line: bytes) -> bool:
    """Return whether a line is complete and undamaged."""
    try:
        json_log.parse(line)
    except WRONG_SHAPE:
        return False
    return True
