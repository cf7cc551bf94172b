"""Blocks of items that several processes divide among them. A block depends on content alone: any number of processes,
and a resume, cut the same blocks, so they compute the same numbers. A lock of the kernel keeps a block for the process
that works on it. If the process dies, another one takes the block over."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import filelock

from stages.config.errors import UserError
from stages.store.safe_files import open_regular

Item = TypeVar("Item")
DEATHS = 2  # the number of processes that a block may end
POLL_SECONDS = 0.1


class BlocksDone(SystemExit):
    """Ends a worker when all blocks have a shard. The parent process reads them and goes on with the stage."""


@dataclass(frozen=True)
class Block(Generic[Item]):
    """Items that one process works on at a time. `name` consists of the block's number and the digest of `ids`."""

    name: str
    items: Sequence[Item]
    ids: Sequence[str]

    def shard(self, folder: Path) -> Path:
        """Return the file of the block's records."""
        return folder / f"{self.name}.parquet"


def cut_blocks(
    groups: Iterable[Sequence[Item]], identify: Callable[[Item], str], size: int
) -> list[Block[Item]]:
    """Return blocks of whole groups, in this order. Each but the last has at least `size` items."""
    blocks, items = list[Block[Item]](), list[Item]()

    def close() -> None:
        ids = [identify(item) for item in items]
        digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:12]
        blocks.append(Block(f"block-{len(blocks):06d}-{digest}", [*items], ids))
        items.clear()

    for group in groups:
        items += group
        if len(items) >= size:
            close()
    if items:
        close()
    return blocks


@contextmanager
def claim(lock: Path, use_lock: bool = True) -> Iterator[int | None]:
    """Hold the lock of a block. Yield the number of earlier claims since the workers started, or None if another
    process holds the lock. A claim that did not end with a shard was the death of its process."""
    # child processes do not inherit it
    descriptor = open_regular(lock, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    with os.fdopen(descriptor, "rb"):
        is_free = not use_lock or filelock.lock_descriptor(descriptor, blocking=False)
        yield os.fstat(descriptor).st_size if is_free else None


def locks_hold(folder: Path) -> bool:
    """Return whether a lock in this folder keeps out a second holder. Some network file systems have no such locks."""
    probe = folder / f"probe-{os.getpid()}.lock"
    try:
        with open(probe, "ab") as first, open(probe, "ab") as second:
            files_hold = [
                filelock.lock_descriptor(file.fileno(), blocking=False) for file in (first, second)
            ]
        return files_hold == [True, False]
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def claim_blocks(
    blocks: Sequence[Block[Item]], folder: Path, place: tuple[int, int]
) -> Iterator[Block[Item]]:
    """Yield blocks for this process until all have a shard. First come those of its rank, then any that no other
    process holds. Where locks do not hold, each process works on the blocks of its rank alone. `place`: rank and
    number of processes.

    Raises:
        UserError: if the only blocks that are left have ended DEATHS processes."""
    (rank, world), use_lock = place, locks_hold(folder)
    waiting = sorted(
        enumerate(blocks), key=lambda numbered: (numbered[0] % world != rank, numbered[0])
    )
    while waiting := [
        (number, block) for number, block in waiting if not block.shard(folder).exists()
    ]:
        others_work, claimed = False, False
        for number, block in waiting:
            if not use_lock and number % world != rank:
                others_work = True
                continue
            lock = folder / f"{block.name}.lock"
            with claim(lock, use_lock) as earlier_claims:
                if earlier_claims is None:
                    others_work = True
                elif not block.shard(folder).exists() and earlier_claims < DEATHS:
                    with open(lock, "ab") as file:
                        file.write(b".")  # the lock's file has a byte for each claim
                    claimed = True
                    yield block
        if claimed:
            continue
        left = [block for _, block in waiting if not block.shard(folder).exists()]
        if left and not others_work:
            raise fatal_blocks_error(left, DEATHS, "set launch.processes=1")
        time.sleep(POLL_SECONDS)


def fatal_blocks_error(blocks: Sequence[Block[Any]], deaths: int, way_out: str) -> UserError:
    """Return the error that names blocks of which each ended `deaths` processes. `way_out`: if memory was full."""
    names = "; ".join(f"{b.name} ({len(b.ids)} ids: {', '.join(b.ids[:5])}, …)" for b in blocks)
    problem = f"each of these blocks ended {deaths} processes: {names}. All other blocks are done and kept"
    return UserError(f"{problem}. If memory was full, {way_out}. The same command resumes.")
