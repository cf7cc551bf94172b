"""Locks of the kernel. If the holder is killed, the kernel releases its lock. A child with the descriptor keeps it."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from stages.config.errors import name_file
from stages.store.allowance import Allowance
from stages.store.safe_files import open_regular

POLL_SECONDS = 0.5  # between two tries of a command that does not wait forever
STORE = Path("cache", "in_use.lock")  # relative to a store's root

log = logging.getLogger(__name__)


def is_held(path: Path) -> bool:
    """Return whether a process, or a child that survived its parent, holds a lock."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
    with os.fdopen(descriptor, "rb") as file, name_file(path):
        return not filelock.lock_descriptor(file.fileno(), blocking=False)


def open_lock(path: Path) -> int:
    """Return the descriptor of a lock's file, which child processes inherit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
    os.set_inheritable(descriptor, True)
    return descriptor


@contextmanager
def hold_lock(
    path: Path, name: str, work: str = "built", allowance: Allowance | None = None
) -> Iterator[None]:
    """Wait for the lock of a file, and hold it. Messages: NAME is being WORK by process 7.
    Raise LimitReached if the time of `allowance` is up first."""
    descriptor = open_lock(path)
    with os.fdopen(descriptor, "rb"):
        with name_file(path):
            if not filelock.lock_descriptor(descriptor, blocking=False):
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
                log.info("%s is being %s by %s. This command waits for it.", name, work, holder)
                wait_for_lock(descriptor, f"while {name} was being {work} by {holder}", allowance)
            holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
        yield


def wait_for_lock(descriptor: int, place: str, allowance: Allowance | None) -> None:
    """Wait for a lock. Raise LimitReached, naming `place`, if the time of `allowance` is up first."""
    if allowance is None or allowance.seconds_left is None:
        filelock.lock_descriptor(descriptor)
        return
    while not filelock.lock_descriptor(descriptor, blocking=False):
        allowance.stop_if_late(place)
        time.sleep(POLL_SECONDS)


@contextmanager
def share_store(store: Path) -> Iterator[None]:
    """Use a store together with other commands, after waiting for `hold_store_alone` to end. A store that this user
    can only read keeps its owner's lock file. Without that file, nobody removes nodes there."""
    lock = store / STORE
    if store.exists() and not os.access(store, os.W_OK):
        if not lock.exists():
            yield
            return
        descriptor = os.open(lock, os.O_RDONLY)
    else:
        descriptor = open_lock(lock)
    with os.fdopen(descriptor, "rb"):
        with name_file(lock):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("stage=gc is removing nodes from %s. This command waits for it.", store)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield


@contextmanager
def hold_store_alone(store: Path) -> Iterator[bool]:
    """Yield True if no other command uses the store, and keep others waiting; yield False if one does."""
    lock = store / STORE
    with os.fdopen(open_lock(lock), "rb") as file:
        with name_file(lock):
            is_alone = filelock.lock_descriptor(file.fileno(), blocking=False)
        yield is_alone
