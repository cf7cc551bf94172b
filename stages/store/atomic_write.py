"""Files outside a node's folder, which no lock keeps to one writer: readers see the old content or the new."""

import uuid
from pathlib import Path

from stages.config.errors import READ_ONLY


def write(file: Path, content: str | bytes) -> None:
    """Replace a file at once, also where several processes do so: each writes a draft of its own."""
    draft = file.with_name(f".{file.name}-{uuid.uuid4().hex}.draft")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def write_if_allowed(file: Path, content: str | bytes) -> bool:
    """Replace a file, and return whether that was allowed: the store of another user may only be read."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, content)
    except OSError as error:
        if error.errno in READ_ONLY:
            return False
        raise
    return True


def link(place: Path, target: Path) -> None:
    """Point a symbolic link to `target`, in the same way."""
    draft = place.with_name(f".{place.name}-{uuid.uuid4().hex}.draft")
    try:
        draft.symlink_to(target)
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)
