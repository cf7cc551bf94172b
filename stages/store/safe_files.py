"""Safe access to files that others could tamper with. Only regular files are opened, and links are not followed.

A file is replaced in one step, so that readers see either the old content or the new."""

import errno
import logging
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.config.errors import (
    READ_ONLY,
    UserError,
    storage_message,
)

# as `ls`
KINDS = {
    "l": "a link",
    "d": "a folder",
    "p": "a FIFO",
    "s": "a socket",
    "c": "a device",
    "b": "a device",
}
# the kernel's errors for a link, a folder, a FIFO or a socket
ELSE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)

log = logging.getLogger(__name__)


class NotRegular(UserError):
    """The error for a link, a folder or a device in the place of a regular file."""

    def __init__(self, path: Path):
        kind = KINDS.get(stat.filemode(os.lstat(path).st_mode)[0], "not a regular file")
        super().__init__(
            f"{path} is {kind}; a regular file belongs there. Move it away, and run the command again."
        )


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a regular file. A link is not followed, and a FIFO does not block the caller.
    Raise NotRegular for a link, a folder, a FIFO, a socket or a device."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in ELSE:
            raise NotRegular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular(path)
    return descriptor


@contextmanager
def draft_of(file: Path) -> Iterator[Path]:
    """Yield the path of a draft that replaces the file at the end, in one step. An error removes the draft, and names the
    file. Several processes may do so at the same time, since each writes another draft."""
    draft = file.with_name(f".{file.name}-{uuid.uuid4().hex}.draft")
    try:
        yield draft
        draft.replace(file)
    except OSError as error:
        if error.filename in (None, str(draft)):
            error.filename = str(file)
        raise
    finally:
        with suppress(
            OSError
        ):  # a read-only or faulty disk, of which the block has raised an error
            draft.unlink(missing_ok=True)


def write(file: Path, content: str | bytes) -> None:
    """Replace a file in one step."""
    with draft_of(file) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def write_in_folder(file: Path, content: str | bytes) -> None:
    """Replace a file in one step, in a folder that is made if it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, content)


def write_if_allowed(file: Path, content: str | bytes) -> bool:
    """Replace a file and return True; return False if this user may not write there, as in another user's store."""
    try:
        write_in_folder(file, content)
    except OSError as error:
        if error.errno in READ_ONLY:
            return False
        raise
    return True


def page_problem(error: Exception, store: Path) -> str | None:
    """Return why a page of a store cannot be written, in one line with the way out; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    return storage_message(error, str(store))


@contextmanager
def without_page(store: Path) -> Iterator[None]:
    """End the block with a warning if it cannot write a page of the store: no command fails because of a page."""
    try:
        yield
    except (OSError, UserError) as error:
        log.warning(
            "warning: this page is not written. %s", page_problem(error, store) or repr(error)
        )


def write_page(file: Path, content: str | bytes) -> bool:
    """Replace a page in the root of a store, and return True; False, after a warning, if that fails."""
    with without_page(file.parent):
        write(file, content)
        return True
    return False


def link(place: Path, target: Path) -> None:
    """Let a symbolic link point to `target`. A link that exists is replaced in one step, a folder never."""
    if place.is_dir() and not place.is_symlink():
        return log.warning(
            "%s is a folder, perhaps a copy of the link that was there. Remove it.", place
        )
    with draft_of(place) as draft:
        draft.symlink_to(target)
