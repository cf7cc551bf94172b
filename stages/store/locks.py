"""Locks of the kernel's: a killed holder frees its lock, and a child that inherits the descriptor keeps it."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from stages.config.errors import UserError, full_disk_message
from stages.store.safe_files import open_regular

STORE = Path("cache", "in_use.lock")  # below a store's root

log = logging.getLogger(__name__)


def is_held(path: Path) -> bool:
    """Whether a process holds a lock, or a child that outlived it."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
    try:
        return not filelock.lock_descriptor(descriptor, blocking=False)
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> int:
    """The descriptor of a lock's file, which children inherit.

    Raises:
        UserError: where nothing can be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        if full_disk_message(error):
            raise
        raise UserError(f"cannot write to {path.parent}: {error.strerror}. Set outputs=FOLDER to another.") from error
    os.set_inheritable(descriptor, True)
    return descriptor


@contextmanager
def hold_lock(descriptor: int, name: str, work: str = "built") -> Iterator[None]:
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


@contextmanager
def share_store(store: Path) -> Iterator[None]:
    """Use the store at this root beside others that do, once nobody is `alone` in it. In a store that may only be
    read, the lock of its owner's is taken as it is; where there is none, nobody removes anything."""
    lock = store / STORE
    if store.exists() and not os.access(store, os.W_OK):
        if not lock.exists():
            yield
            return
        descriptor = os.open(lock, os.O_RDONLY)
    else:
        descriptor = open_lock(lock)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("stage=gc removes from %s: waiting.", store)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def hold_store_alone(store: Path) -> Iterator[bool]:
    """Whether nobody uses the store at this root, and then nobody begins to meanwhile."""
    descriptor = open_lock(store / STORE)
    try:
        yield filelock.lock_descriptor(descriptor, blocking=False)
    finally:
        os.close(descriptor)
