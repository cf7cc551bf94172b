"""Tests of the memory that a process keeps when tensors are freed."""

import platform
import re
import resource
import subprocess
import sys
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
