"""What a computing process keeps of the memory that its tensors leave."""

import ctypes
import platform
import random
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
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def taken() -> int:
    """New pages that the system has given to this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def take() -> int:
    """How many pages a large tensor takes, which is written to and freed."""
    import torch

    before = taken()
    torch.ones(BYTES, dtype=torch.uint8)
    return taken() - before


def watch() -> None:
    whole = take()
    with allocator.keep_freed_memory():
        first, second, held = take(), take(), resident()
    assert whole >= BYTES / resource.getpagesize(), "glibc gives it back: each tensor takes all its pages anew"
    assert first < whole / 8 or "[never]" in HUGE_PAGES.read_text()
    assert second < whole / 100, "those that the first left"
    assert resident() < held - BYTES / 2, "in the end, what is not in use goes back"


def addresses() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def reserve(overcommit: str) -> None:
    """Writes how many addresses are taken."""
    allocator.OVERCOMMIT = Path(overcommit)
    before = addresses()
    with allocator.keep_freed_memory():
        sys.stdout.write(str(addresses() - before))


@pytest.mark.parametrize("mode", ["0", "1", "2"])
def test_where_addresses_count_as_memory_none_are_reserved(mode: str, tmp_path: Path) -> None:
    (tmp_path / "overcommit").write_text(f"{mode}\n")
    code = f"from {__name__} import reserve; reserve({str(tmp_path / 'overcommit')!r})"
    taken = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    if mode == "2":
        assert int(taken) < BYTES
    elif allocator.OVERCOMMIT.read_text().strip() != "2":
        assert int(taken) > BYTES


def test_memory_of_a_freed_tensor_serves_the_next_and_goes_back_in_the_end() -> None:
    """In a process of its own: what an allocator was once told stays."""
    code = f"from {__name__} import watch; watch()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def fragment(blocks: int) -> None:
    """Leave free blocks of many sizes between small ones that stay, as a long training does."""
    libc, draw = ctypes.CDLL(None), random.Random(0)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    freed = []
    for _ in range(blocks):
        freed.append(libc.malloc(draw.randrange(150_000, 3_000_000)))
        libc.malloc(2_000)
    for block in freed:
        libc.free(block)


def seconds_of_tensors(count: int = 1000) -> float:
    """Processor time of making so many tensors of many sizes, nine of them at once, none written to."""
    import torch

    draw, live, before = random.Random(1), list[torch.Tensor](), time.process_time()
    for _ in range(count):
        live.append(torch.empty(draw.randrange(200_000, 6_000_000), dtype=torch.uint8))
        if len(live) > 8:
            live.pop(draw.randrange(8))
    return time.process_time() - before


def after_another() -> None:
    allocator.MADV_HUGEPAGE = allocator.MADV_NOHUGEPAGE  # pages that are quickly made
    with allocator.keep_freed_memory():
        seconds_of_tensors()
        fragment(4000)
        slow = seconds_of_tensors()
    before = resident()
    with allocator.keep_freed_memory():
        seconds_of_tensors(50)
        assert seconds_of_tensors() < slow / 4, "blocks that the first left are not searched by the second"
        assert resident() < before + BYTES, "nor do they take memory again"
        with allocator.keep_freed_memory():  # of a stage within a stage, nobody takes what the outer one holds
            assert seconds_of_tensors() < slow / 4


@pytest.mark.skipif(allocator.OVERCOMMIT.read_text().strip() == "2", reason="nothing is reserved")
def test_what_one_stage_leaves_in_pieces_does_not_slow_the_next() -> None:
    code = f"from {__name__} import after_another; after_another()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
