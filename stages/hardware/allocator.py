"""How a process that computes asks the system for memory."""

import ctypes
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX, MADV_HUGEPAGE, MADV_NOHUGEPAGE = -1, -4, 14, 15  # <malloc.h>, <sys/mman.h>
BLOCK_SIZES = [2**n for n in range(30, 15, -1)]  # bytes: smaller ones are found without a search
RESERVED_SHARE = 0.75  # of the machine's memory; Linux refuses addresses for more than there is
# Says 2 where Linux counts addresses as memory that is taken: none would be left to other processes.
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
MAPS = Path("/proc/self/maps")
PAGE = os.sysconf("SC_PAGE_SIZE")


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Have glibc keep what a tensor leaves for the next one, in huge pages; in the end it goes back to the system.

    Left alone, glibc gives the memory of large tensors back as they are freed. A training step then gets all of its
    activations as new pages of 4 KiB, each of which the system clears when it is written to: with bf16 that is a
    tenth of the step. Where there is another allocator, or the system refuses, nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap too,
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.malloc_trim(0)
    size = int(RESERVED_SHARE * os.sysconf("SC_PHYS_PAGES")) * PAGE
    addresses_count = OVERCOMMIT.exists() and OVERCOMMIT.read_text(encoding="utf-8").strip() == "2"
    blocks = list[int]()
    # Addresses: the heap grows by them, and has memory only where it was written to.
    if not addresses_count and (heap := libc.malloc(size)):
        libc.madvise(-(-heap // PAGE) * PAGE, size - PAGE, MADV_HUGEPAGE)
        libc.free(heap)
        blocks = claim_free_blocks(libc, heap)
    try:
        yield
    finally:
        for block in blocks:
            libc.free(block)
        libc.malloc_trim(0)


def claim_free_blocks(libc: ctypes.CDLL, heap: int) -> list[int]:
    """Take all free blocks that lie below the address `heap`, where the heap goes on. Their memory has gone back to
    the system already. An earlier stage leaves thousands, of as many sizes, and glibc would go through them one by one
    for every large tensor: sampling after a long training took three times as long.
    """
    blocks = list[int]()
    if begins := re.search(r"^([0-9a-f]+)-.*\[heap\]$", MAPS.read_text(encoding="utf-8"), flags=re.MULTILINE):
        start = int(begins[1], 16)  # glibc writes where a block begins: a small page each
        libc.madvise(start, heap // PAGE * PAGE - start, MADV_NOHUGEPAGE)
    for size in BLOCK_SIZES:
        while (block := libc.malloc(size)) and block < heap:
            blocks.append(block)
        libc.free(block)
    return blocks
