"""Read the properties of this machine without importing torch."""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from stages.config.choices import GPUS


class GPU(NamedTuple):
    name: str
    compute_capability: float
    free_memory: int  # bytes


planned_gpu = ContextVar[GPU | None]("planned_gpu", default=None)  # of another machine, which a plan is made for


def plan_for(name: str | None) -> None:
    """Describe this machine with the GPU `name` of GPUS instead of its own; None: with its own."""
    planned_gpu.set(GPU(name, GPUS[name][0], int(GPUS[name][1] * 1e9)) if name else None)


def gpu() -> GPU | None:
    """Return the GPU that is planned for, else the first one that the driver shows to this process, or None."""
    return planned_gpu.get() or driver_gpu()


@cache
def driver_gpu() -> GPU | None:
    if not shutil.which("nvidia-smi") or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.free", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    if answer.returncode != 0 or not answer.stdout.strip():
        return None
    name, capability, free = answer.stdout.splitlines()[0].rsplit(",", 2)
    return GPU(name.strip(), float(capability), int(free) * 2**20)


def may_have_gpu() -> bool:
    """Return False if torch cannot see a GPU: there is no device of NVIDIA, AMD or WSL, or the environment hides
    all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or platform.system() == "Darwin":
        return False
    devices = ("nvidia[0-9]*", "nvidiactl", "kfd", "dxg")
    return bool(shutil.which("nvidia-smi")) or any(any(Path("/dev").glob(name)) for name in devices)


@cache
def processor_name(on_gpu: bool) -> str:
    """Return the name of the processor under which speeds are stored: `NVIDIA H200`, or `2 x Intel(R) Xeon(R)
    Processor 6/167/1` with cores, family, model and stepping, which a hypervisor's name lacks."""
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
    """Return True if bf16 arithmetic is native: CUDA from compute capability 8.0, AVX512-BF16 or AMX, Apple silicon.

    `precision=auto` uses this. Emulated bf16 is several times slower than fp32.
    """
    if first_gpu := gpu():
        return first_gpu.compute_capability >= 8.0
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def free_memory() -> int:
    """Return the bytes that this process can still allocate: the machine's available memory, or the memory that
    control groups leave, if less (Linux; elsewhere all the machine's memory)."""
    if platform.system() != "Linux":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = [int(re.findall(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))[0]) * 1024]
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            free += free_group_memory(Path("/sys/fs/cgroup") / controllers, group.strip("/"))
    return max(0, min(free))


def free_group_memory(root: Path, group: str) -> Iterator[int]:
    """Yield the bytes that each control group from this one up leaves of its limit. Inactive page cache counts as
    free, because the kernel frees it on demand. Control groups have version 2, or version 1 under `memory/`."""
    version_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    names = version_1 if root.name == "memory" else ("memory.max", "memory.current")
    for folder in (root / group, *(root / group).parents):
        if not folder.is_relative_to(root):
            return
        limit, used = (folder / name for name in names)
        if limit.exists() and (limit_bytes := limit.read_text(encoding="utf-8").strip()) != "max":
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
            idle = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            yield int(limit_bytes) - int(used.read_text(encoding="utf-8")) + idle


def reset_peak_memory() -> None:
    """Start new peaks of resident memory (on Linux; elsewhere the peak is the process's) and of the GPU's memory."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    if accelerator := accelerator_in_use():
        accelerator.reset_peak_memory_stats()


def accelerator_in_use() -> Any:
    """Return torch's module of the accelerator, such as torch.cuda, if this process has loaded torch and used a GPU,
    else None."""
    torch = sys.modules.get("torch")
    device = torch.accelerator.current_accelerator() if torch else None
    module = torch.get_device_module(device) if torch and device and device.type != "mps" else None
    return module if module and module.is_initialized() else None


def give_back_gpu_memory() -> None:
    """Free GPU memory that torch holds beyond its tensors, for a token budget and for other processes on the GPU."""
    if accelerator := accelerator_in_use():
        accelerator.empty_cache()


def peak_gpu_memory() -> int | None:
    """Return the peak of bytes allocated on the GPU since `reset_peak_memory`; None without a GPU."""
    accelerator = accelerator_in_use()
    return accelerator.max_memory_allocated() if accelerator else None


def peak_memory() -> int:
    """Return the peak of resident memory since `reset_peak_memory`, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
