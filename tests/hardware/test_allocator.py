"""Tests of the memory that a process keeps when tensors are freed."""

import ctypes
import platform
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.config.installation import ROOT
from stages.hardware import allocator

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
BYTES = 256 * 2**20
HUGE_PAGES, SMAPS = Path("/sys/kernel/mm/transparent_hugepage/enabled"), Path("/proc/self/smaps")


def resident_bytes() -> int:
    """Return the number of new pages that the system has given to this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def take() -> int:
    """Return how many new pages a large tensor takes when it is written to and freed."""
    import torch

    before = resident_bytes()
    torch.ones(BYTES, dtype=torch.uint8)
    return resident_bytes() - before


def wants_huge_pages(address: int) -> bool:
    """Return True if this process asked for huge pages there. A machine without free ones gives small ones."""
    mappings = re.finditer(
        r"^([0-9a-f]+)-([0-9a-f]+) (?:.*\n)+?VmFlags:(.*)", SMAPS.read_text(), flags=re.MULTILINE
    )
    flags = next(m[3] for m in mappings if int(m[1], 16) <= address < int(m[2], 16))
    return "hg" in flags.split()


def watch() -> None:
    import torch

    whole = take()
    with allocator.keep_freed_memory():
        for _ in range(2):
            take()
            second, resident_while_kept = take(), resident()
            assert second < whole / 100, "those that the first left"
            middle = torch.ones(BYTES, dtype=torch.uint8).data_ptr() + BYTES // 2
            assert wants_huge_pages(middle) or not HUGE_PAGES.exists() or not SMAPS.exists()
            allocator.return_freed_memory()
            assert resident() < resident_while_kept - BYTES / 2, (
                "it goes back, and later tensors are kept as before"
            )
        take()
        resident_while_kept = resident()
    assert whole >= BYTES / resource.getpagesize(), (
        "glibc gives it back: each tensor takes all its pages anew"
    )
    assert resident() < resident_while_kept - BYTES / 2, "in the end, what is not in use goes back"


def addresses() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def reserve(overcommit: str) -> None:
    """Print how many addresses are reserved."""
    allocator.OVERCOMMIT = Path(overcommit)
    before = addresses()
    with allocator.keep_freed_memory():
        sys.stdout.write(str(addresses() - before))


@pytest.mark.parametrize("mode", ["0", "1", "2"])
def test_where_addresses_count_as_memory_none_are_reserved(mode: str, tmp_path: Path) -> None:
    (tmp_path / "overcommit").write_text(f"{mode}\n")
    code = f"from {__name__} import reserve; reserve({str(tmp_path / 'overcommit')!r})"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    if mode == "2":
        assert int(output) < BYTES
    elif allocator.OVERCOMMIT.read_text().strip() != "2":
        assert int(output) > BYTES


@pytest.mark.extended
def test_memory_of_a_freed_tensor_serves_the_next_and_goes_back_in_the_end() -> None:
    """Use a separate process, because settings of an allocator cannot be undone."""
    code = f"from {__name__} import watch; watch()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def load_libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    return libc


def fragment(blocks: int) -> None:
    """Leave free blocks of many sizes between small used ones, as after a long training."""
    libc, draw, freed = load_libc(), random.Random(0), []
    for _ in range(blocks):
        freed.append(libc.malloc(draw.randrange(150_000, 3_000_000)))
        libc.malloc(2_000)
    for block in freed:
        libc.free(block)


def seconds_of_tensors(count: int = 1000) -> float:
    """Return the processor time of allocating many tensors of many sizes, nine at once, without writing to them."""
    import torch

    draw, live, before = random.Random(1), list[torch.Tensor](), time.process_time()
    for _ in range(count):
        live.append(torch.empty(draw.randrange(200_000, 6_000_000), dtype=torch.uint8))
        if len(live) > 8:
            live.pop(draw.randrange(8))
    return time.process_time() - before


def after_another() -> None:
    allocator.MADV_HUGEPAGE = allocator.MADV_NOHUGEPAGE  # the system makes normal pages faster
    with allocator.keep_freed_memory():
        seconds_of_tensors()
        fragment(4000)
        slow = seconds_of_tensors()
    before = resident()
    with allocator.keep_freed_memory():
        seconds_of_tensors(50)
        assert seconds_of_tensors() < slow / 4, (
            "blocks that the first left are not searched by the second"
        )
        assert resident() < before + BYTES, "nor do they take memory again"
        # a nested stage must not take the memory of the outer one
        with allocator.keep_freed_memory():
            assert seconds_of_tensors() < slow / 4


def claim_below_other_heaps() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (64 * 2**30,) * 2)
    libc, before = load_libc(), addresses()
    allocator.claim_free_blocks(libc, heap=2**47)
    assert addresses() - before < 2 * max(allocator.BLOCK_SIZES)


def test_addresses_between_the_first_heap_and_another_are_not_all_taken() -> None:
    code = f"from {__name__} import claim_below_other_heaps as claim; claim()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.extended
@pytest.mark.skipif(allocator.OVERCOMMIT.read_text().strip() == "2", reason="nothing is reserved")
def test_what_one_stage_leaves_in_pieces_does_not_slow_the_next() -> None:
    code = f"from {__name__} import after_another; after_another()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
