"""What this machine is, read without importing torch."""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple


class GPU(NamedTuple):
    name: str
    compute_capability: float
    free_memory: int  # bytes


@cache
def gpu() -> GPU | None:
    """The first GPU that its driver shows to this process, if there is one."""
    if not shutil.which("nvidia-smi") or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.free", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    if answer.returncode != 0 or not answer.stdout.strip():
        return None
    name, capability, free = answer.stdout.splitlines()[0].rsplit(",", 2)
    return GPU(name.strip(), float(capability), int(free) * 2**20)


def may_have_gpu() -> bool:
    """Return False where torch cannot see a GPU: the system shows no device of NVIDIA's, AMD's or Windows' under
    Linux, or the environment hides all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or platform.system() == "Darwin":
        return False
    devices = ("nvidia[0-9]*", "nvidiactl", "kfd", "dxg")
    return bool(shutil.which("nvidia-smi")) or any(any(Path("/dev").glob(name)) for name in devices)


@cache
def processor_name(on_gpu: bool) -> str:
    """What computes here, by a name under which a speed may be remembered: `NVIDIA H200`, or `2 x Intel(R) Xeon(R)
    Processor 6/167/1` with the cores, and the family, model and stepping that a hypervisor's name leaves out."""
    if on_gpu:
        return first_gpu.name if (first_gpu := gpu()) else "GPU"
    fields = dict[str, str]()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        first, *_ = cpuinfo.read_text(encoding="utf-8").split("\n\n")
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    kind = "/".join(fields[key] for key in ("cpu family", "model", "stepping") if key in fields)
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{os.cpu_count()} x {name} {kind}".strip()


def computes_bf16() -> bool:
    """Whether bf16 arithmetic is native here: CUDA from compute capability 8.0, AVX512-BF16 or AMX, Apple silicon.

    `precision=auto` asks this. Where it is emulated, bf16 is several times slower than fp32.
    """
    if first_gpu := gpu():
        return first_gpu.compute_capability >= 8.0
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def free_memory() -> int:
    """Bytes that this process could still take: what the machine has available, or what its control groups leave of
    their limits, if that is less (Linux; elsewhere all that the machine has)."""
    if platform.system() != "Linux":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = [int(re.findall(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))[0]) * 1024]
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            free += free_group_memory(Path("/sys/fs/cgroup") / controllers, group.strip("/"))
    return max(0, min(free))


def free_group_memory(root: Path, group: str) -> Iterator[int]:
    """What each control group from this one up leaves of its limit, in bytes. Inactive page cache does not count as
    used: the kernel gives it back when asked. Control groups of version 2, and of version 1 under `memory/`."""
    names = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if root.name == "memory"
        else ("memory.max", "memory.current")
    )
    for folder in (root / group, *(root / group).parents):
        if not folder.is_relative_to(root):
            return
        limit, used = (folder / name for name in names)
        if limit.exists() and (limit_bytes := limit.read_text(encoding="utf-8").strip()) != "max":
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
            idle = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            yield int(limit_bytes) - int(used.read_text(encoding="utf-8")) + idle


def reset_peak_memory() -> None:
    """Start a new high-water mark of resident memory (on Linux; else the mark is the process's own), and the GPU's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    if cuda := cuda_in_use():
        cuda.reset_peak_memory_stats()


def cuda_in_use() -> Any:
    """torch.cuda where this process has loaded torch and used a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_initialized() else None


def give_back_gpu_memory() -> None:
    """Return what torch holds of a GPU beyond its tensors: the driver counts it as taken, to a token budget and to
    processes that are started on the same GPU."""
    if cuda := cuda_in_use():
        cuda.empty_cache()


def peak_gpu_memory() -> int | None:
    """Bytes allocated on the GPU at the high-water mark since `reset_peak_memory`; None without a GPU."""
    cuda = cuda_in_use()
    return cuda.max_memory_allocated() if cuda else None


def peak_memory() -> int:
    """Bytes of resident memory at the high-water mark since `reset_peak_memory`."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
