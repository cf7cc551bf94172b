"""Change how this process asks the system for memory."""

import ctypes
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# <malloc.h>, <sys/mman.h>
M_TRIM_THRESHOLD, M_MMAP_MAX, MADV_HUGEPAGE, MADV_NOHUGEPAGE = -1, -4, 14, 15
BLOCK_SIZES = [2**n for n in range(30, 15, -1)]  # bytes; glibc needs no search for smaller blocks
# of the machine's memory; Linux refuses addresses for more than the machine has
RESERVED_SHARE = 0.75
# This file contains 2 if Linux counts reserved addresses as used memory, which would leave none to other processes.
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
MAPS = Path("/proc/self/maps")
PAGE = os.sysconf("SC_PAGE_SIZE")


def find_glibc() -> ctypes.CDLL | None:
    """Return the C library with the types of its functions that are called here; None if it is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return None
    libc, address = ctypes.CDLL(None), ctypes.c_void_p
    libc.malloc.restype = address
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.sbrk.restype = address
    libc.free.argtypes, libc.madvise.argtypes = [address], [address, ctypes.c_size_t, ctypes.c_int]
    return libc


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Make glibc keep freed tensors' memory for later tensors, in huge pages; at the end it returns to the system.

    By default glibc returns the memory of large tensors when they are freed. A training step then gets its activations
    as new pages of 4 KiB, and the system clears each at its first write: in bf16 a tenth of the step's time. With
    another allocator, or if the system refuses, nothing changes."""
    if (libc := find_glibc()) is None:
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap too
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # the heap never shrinks
    heap = return_freed_memory()
    blocks = claim_free_blocks(libc, heap) if heap else []
    try:
        yield
    finally:
        for block in blocks:
            libc.free(block)
        libc.malloc_trim(0)


def return_freed_memory() -> int | None:
    """Return the memory of freed tensors to the system now, before work that takes blocks of other sizes. Return the
    address of the heap's part for later tensors; None if addresses cannot be reserved, or with another allocator."""
    if (libc := find_glibc()) is None:
        return None
    libc.malloc_trim(0)
    size = int(RESERVED_SHARE * os.sysconf("SC_PHYS_PAGES")) * PAGE
    addresses_count = OVERCOMMIT.exists() and OVERCOMMIT.read_text(encoding="utf-8").strip() == "2"
    # Allocating and freeing one large block extends the heap's addresses; only written pages take memory.
    if addresses_count or not (heap := libc.malloc(size)):
        return None
    libc.madvise(-(-heap // PAGE) * PAGE, size - PAGE, MADV_HUGEPAGE)
    libc.free(heap)
    return int(heap)


def claim_free_blocks(libc: ctypes.CDLL, heap: int) -> list[int]:
    """Allocate all free blocks below the address `heap`, and return them. Their memory is already back at the system.
    An earlier stage leaves thousands of free blocks of many sizes, and glibc would search them for every large tensor:
    sampling after a long training took three times as long. Once memory ran out, glibc has other heaps too, and makes
    new ones, each at a lower address, until none is left: only blocks of the first one, which sbrk extends, count."""
    blocks, end = list[int](), min(heap, libc.sbrk(0))
    if begins := re.search(
        r"^([0-9a-f]+)-.*\[heap\]$", MAPS.read_text(encoding="utf-8"), flags=re.MULTILINE
    ):
        # glibc writes at the start of each block, which then takes one small page
        start = int(begins[1], 16)
        libc.madvise(start, end // PAGE * PAGE - start, MADV_NOHUGEPAGE)
    for size in BLOCK_SIZES:
        while (block := libc.malloc(size)) and block < end:
            blocks.append(block)
        libc.free(block)
    return blocks
