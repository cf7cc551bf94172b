"""How a process that computes asks the system for memory."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX, MADV_HUGEPAGE = -1, -4, 14  # <malloc.h>, <sys/mman.h>
RESERVED = 0.75  # of the machine's memory; Linux refuses addresses for more than there is
# Says 2 where Linux counts addresses as memory that is taken: none would be left to other processes.
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


@contextmanager
def keeping() -> Iterator[None]:
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
    page = os.sysconf("SC_PAGE_SIZE")
    size = int(RESERVED * os.sysconf("SC_PHYS_PAGES")) * page
    counted = OVERCOMMIT.exists() and OVERCOMMIT.read_text().strip() == "2"
    # Addresses: the heap grows by them, and has memory only where it was written to.
    if not counted and (heap := libc.malloc(size)):
        libc.madvise(-(-heap // page) * page, size - page, MADV_HUGEPAGE)
        libc.free(heap)
    try:
        yield
    finally:
        libc.malloc_trim(0)
