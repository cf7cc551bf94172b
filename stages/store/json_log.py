"""Files of JSON lines that are only ever appended to: what was paid for, and what people said.

A line ends with a digest of itself; a line of an earlier version has none, and is taken as it is. A line that cannot
be read is set aside, into a file next to its own. The digest tells damage, not a forger, who can compute it too.
"""

import asyncio
import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from stages.store.safe_files import open_regular
from stages.store.sealed_json import WRONG_SHAPE, sync

log = logging.getLogger(__name__)

T = TypeVar("T")
END = re.compile(rb', "digest": "([0-9a-f]{32})"}\Z')


class Line(NamedTuple, Generic[T]):
    """A line that was read, and where it begins and how long it is."""

    value: T
    place: int
    length: int


def sealed(row: Mapping[str, Any]) -> bytes:
    """Return a row as a line that ends with its digest."""
    content = json.dumps(row).encode()
    return content[:-1] + b', "digest": "' + digest_of(content) + b'"}\n'


def parse(line: bytes) -> Any:
    """Return what a line holds, without its digest.

    Raises:
        ValueError: for a line that is not JSON, or does not have the digest that it ends with.
    """
    content = line.removesuffix(b"\n")
    if end := END.search(content):
        content = content[: end.start()] + b"}"
        if digest_of(content) != end[1]:
            raise ValueError("the line does not have its digest")
    return json.loads(content.decode())


def digest_of(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:32].encode()


def read(path: Path, shape: Callable[[Any], T], loss: str) -> list[Line[T]]:
    """Return every line of a file as `shape` takes it, oldest first, for whoever may write the file alone. Lines that
    `shape` does not take, or that cannot be read, are set aside; `loss` says what becomes of their content.

    Raises:
        NotRegular: for a link, a folder, a FIFO, a socket or a device.
    """
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
        set_aside(path, bad)
        log.warning(
            "warning: %s: %d of %d lines cannot be read, and are set aside in %s.unreadable. %s",
            path, len(bad), number, path.name, loss,
        )  # fmt: skip
    elif not line.endswith(b"\n"):  # a kill came between a line and its end
        with open(path, "ab") as file:
            file.write(b"\n")
    return lines


def set_aside(path: Path, numbers: set[int]) -> None:
    """Move the lines with these numbers to the end of the file next to their own. No kill loses a line."""
    draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}.draft")
    try:
        with open(path, "rb") as file, open(draft, "xb") as good, open(f"{path}.unreadable", "ab") as unreadable:
            for number, line in enumerate(file, 1):
                (unreadable if number in numbers else good).write(line.removesuffix(b"\n") + b"\n")
            for written in (unreadable, good):
                written.flush()
                os.fsync(written.fileno())
        draft.replace(path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def append(descriptor: int, line: bytes) -> int:
    """Write a line at the end of a file, whole or not at all, and return its place. A kill of this process loses
    nothing of a line that was written; `os.fsync` keeps it from a loss of power."""
    place, left = os.lseek(descriptor, 0, os.SEEK_END), line
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:  # a full disk: the next line would join the rest of this one
        os.ftruncate(descriptor, place)
        raise
    return place


class Appender:
    """A file that coroutines append lines to, and that a thread brings to the disk. To be used inside `opened`."""

    waiting: asyncio.Task[None] | None  # for the disk: what begins next, not what runs

    def __init__(self, path: Path):
        self.path, self.file = path, -1

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the file. At the end its lines are on the disk."""
        self.file = open_regular(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        self.disk, self.waiting = asyncio.Lock(), None  # of the event loop that runs now
        try:
            sync(self.path.parent)
            yield
            os.fsync(self.file)
        finally:
            os.close(self.file)

    def append(self, line: bytes) -> int:
        return append(self.file, line)

    async def durable(self) -> None:
        """Return once all lines of before are on the disk. Those who come while the disk works wait for one turn."""
        self.waiting = self.waiting or asyncio.ensure_future(self._sync())
        await asyncio.shield(self.waiting)

    async def _sync(self) -> None:
        async with self.disk:
            self.waiting = None  # a line that is appended from here on needs the next turn
            await asyncio.to_thread(os.fsync, self.file)
