"""Locks of the kernel's: a killed holder frees its lock, and a child that inherits the descriptor keeps it."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

log = logging.getLogger(__name__)


def is_held(path: Path) -> bool:
    """Whether a process holds a lock, or a child that outlived it."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDWR)
    try:
        return not filelock.lock_descriptor(descriptor, blocking=False)
    finally:
        os.close(descriptor)


def opened(path: Path) -> int:
    """The descriptor of a lock's file, which children inherit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(descriptor, True)
    return descriptor


@contextmanager
def held(descriptor: int, name: str, work: str = "built") -> Iterator[None]:
    """Hold a lock, whose descriptor is then closed; `name` and `work` say to who waits what is being built."""
    try:
        if not filelock.lock_descriptor(descriptor, blocking=False):
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
            log.info("%s is being %s by %s: waiting.", name, work, holder)
            filelock.lock_descriptor(descriptor)
        holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        yield
    finally:
        os.close(descriptor)
