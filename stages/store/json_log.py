"""Append-only files of JSON lines, for answers that cost money and for judgements of people.

Each line ends with a digest of itself, and lines of earlier versions without a digest are accepted. Unreadable lines
are moved to a second file, FILE.unreadable. The digest detects damage, but not forgery: anybody can compute it."""

import asyncio
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from stages.store.safe_files import draft_of, open_regular
from stages.store.sealed_json import WRONG_SHAPE, sync

log = logging.getLogger(__name__)

T = TypeVar("T")
END = re.compile(rb', "digest": "([0-9a-f]{32})"}\Z')


class Line(NamedTuple, Generic[T]):
    """The content of a line, the byte at which the line starts, and its length in bytes."""

    value: T
    place: int
    length: int


def sealed(row: Mapping[str, Any]) -> bytes:
    """Return a row as a line that ends with its digest."""
    content = json.dumps(row).encode()
    return content[:-1] + b', "digest": "' + digest_of(content) + b'"}\n'


def parse(line: bytes) -> Any:
    """Return a line's content without its digest. Raise ValueError if it is not JSON, or the digest does not fit."""
    content = line.removesuffix(b"\n")
    if end := END.search(content):
        content = content[: end.start()] + b"}"
        if digest_of(content) != end[1]:
            raise ValueError("the digest does not fit the line")
    return json.loads(content.decode())


def digest_of(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:32].encode()


def read(path: Path, shape: Callable[[Any], T], loss: str) -> list[Line[T]]:
    """Return every line of a file, oldest first, with the value that `shape` returns. The caller holds the file's
    lock. Unreadable lines, and lines for which `shape` raises an error, are moved to FILE.unreadable. The warning ends
    with `loss`, a sentence that says what happens to their content.
    Raise NotRegular for a link, a folder, a FIFO, a socket or a device."""
    lines, bad, place, number, line = list[Line[T]](), set[int](), 0, 0, b"\n"
    if not os.path.lexists(path):
        return lines
    with os.fdopen(open_regular(path), "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                lines.append(Line(shape(parse(line)), place, len(line)))
                place += len(line)
            except WRONG_SHAPE:
                bad.add(number)
    if bad:
        move_aside(path, bad)
        log.warning(
            "warning: %s: %d of %d lines cannot be read. They are moved to %s.unreadable. %s",
            path, len(bad), number, path.name, loss,
        )  # fmt: skip
    elif not line.endswith(b"\n"):  # a kill came before the end of the line
        with open(path, "ab") as file:
            file.write(b"\n")
    return lines


def move_aside(path: Path, numbers: set[int]) -> None:
    """Move the lines with these numbers to the end of PATH.unreadable. A kill at any point loses no line."""
    with (
        draft_of(path) as draft,
        open(draft, "xb") as good,
        open(f"{path}.unreadable", "ab") as unreadable,
    ):
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                (unreadable if number in numbers else good).write(line.removesuffix(b"\n") + b"\n")
        for written in (unreadable, good):
            written.flush()
            os.fsync(written.fileno())
    sync(path.parent)


def append(descriptor: int, line: bytes) -> int:
    """Append a complete line to a file, and return the byte at which it starts. If the disk is full, remove its part.
    A kill of this process does not lose a written line. Only `os.fsync` protects it from a power failure."""
    place, left = os.lseek(descriptor, 0, os.SEEK_END), line
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:  # on a full disk, the next line would join this part
        os.ftruncate(descriptor, place)
        raise
    return place


class Appender:
    """A file to which coroutines append lines, and which a thread syncs to the disk. Use it inside `opened`."""

    waiting: asyncio.Task[None] | None  # the next sync of the file, which has not started yet

    def __init__(self, path: Path):
        self.path, self.file = path, -1

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the file. At the end, sync its lines to the disk."""
        self.file = open_regular(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        self.disk, self.waiting = asyncio.Lock(), None  # a lock of the running event loop
        with os.fdopen(self.file, "rb"):
            sync(self.path.parent)
            yield
            os.fsync(self.file)

    async def durable(self) -> None:
        """Return when all lines appended so far are on the disk. Callers during a sync share the next one."""
        self.waiting = self.waiting or asyncio.ensure_future(self._sync())
        await asyncio.shield(self.waiting)

    async def _sync(self) -> None:
        async with self.disk:
            self.waiting = None  # lines appended from here on need the next sync
            await asyncio.to_thread(os.fsync, self.file)
