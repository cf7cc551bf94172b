"""Read the properties of this machine without importing torch."""

import contextlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from stages.config.choices import GPUS
from stages.config.installation import output_of


class GPU(NamedTuple):
    name: str
    compute_capability: float
    free_memory: int  # bytes
    uuid: str = ""


CPUINFO = Path("/proc/cpuinfo")  # of Linux
# A line of `nvidia-smi -L`. A MIG instance's name ends with its memory in GB.
LISTED = re.compile(r"GPU (\d+):|\s+MIG \S*\.(\d+)gb\S*\s+Device\s+\d+: \(UUID: (MIG-\S+)\)")
# of another machine, which a plan is made for
planned_gpu = ContextVar[GPU | None]("planned_gpu", default=None)


def plan_for(name: str | None) -> None:
    """Describe this machine with the GPU `name` of GPUS instead of its own; None: with its own."""
    planned_gpu.set(GPU(name, GPUS[name][0], int(GPUS[name][1] * 1e9)) if name else None)


def gpu() -> GPU | None:
    """Return the GPU that is planned for, else the first that CUDA shows to this process, or None."""
    return planned_gpu.get() or next(iter(visible_gpus()), None)


def visible_gpus() -> list[GPU]:
    """Return the GPUs that CUDA shows to this process, in its order, by the rules of CUDA_VISIBLE_DEVICES: indices, or
    beginnings of UUIDs; the first invalid entry ends the list, and a repeated one empties it. Of several MIG instances
    CUDA shows the first, and no other GPU beside it. Indices count as in nvidia-smi (CUDA_DEVICE_ORDER=PCI_BUS_ID)."""
    named, visible = driver_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = list[GPU]()
    for entry in map(
        str.strip, filter(str.isdecimal, named) if visible is None else visible.split(",")
    ):
        is_uuid = entry.startswith(("GPU-", "MIG-"))
        matching = {
            gpu
            for name, gpu in named.items()
            if name == entry or (is_uuid and name.startswith(entry))
        }
        if len(matching) != 1:
            break
        if matching <= {*chosen}:
            return []
        chosen += matching
    return [gpu for gpu in chosen if gpu.uuid.startswith("MIG-")][:1] or chosen


@cache
def driver_gpus() -> dict[str, GPU]:
    """Return this machine's GPUs by index and by UUID. A GPU that is divided into MIG instances (multi-instance GPU)
    is its first instance, and every instance has its own UUID and the memory of its profile."""
    if not shutil.which("nvidia-smi"):
        return {}
    fields = "--query-gpu=index,uuid,mig.mode.current,compute_cap,memory.free,name"
    gpus, named = dict[str, GPU](), dict[str, GPU]()
    for line in ask_driver(fields, "--format=csv,noheader,nounits"):
        index, uuid, mig, capability, free, name = line.split(", ", 5)
        # [N/A]: it shares the machine's memory
        size = int(free) * 2**20 if free.isdecimal() else free_memory()
        gpus[index] = GPU(name, float(capability), 0 if mig == "Enabled" else size, uuid)
        if mig != "Enabled":
            named |= {index: gpus[index], uuid: gpus[index]}
    index = ""
    for match in map(LISTED.match, ask_driver("-L") if len(named) < 2 * len(gpus) else ()):
        if match and match[1]:
            index = match[1]
        elif match:
            instance = gpus[index]._replace(free_memory=int(match[2]) * 10**9, uuid=match[3])
            for name in (index, gpus[index].uuid, instance.uuid):
                named.setdefault(name, instance)
    return named


def ask_driver(*options: str) -> list[str]:
    """Return the lines that nvidia-smi prints; none if it finds no driver."""
    return (output_of("nvidia-smi", *options) or "").splitlines()


def may_have_gpu() -> bool:
    """Return False if torch cannot see a GPU: there is no device, or the environment hides all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or platform.system() == "Darwin":
        return False
    devices = ("nvidia[0-9]*", "nvidiactl", "kfd", "dxg")
    return bool(shutil.which("nvidia-smi")) or any(any(Path("/dev").glob(name)) for name in devices)


@cache
def processor_name(on_gpu: bool) -> str:
    """Return the name of the processor under which speeds are stored: `NVIDIA H200`, or `2 x Intel(R) Xeon(R)
    Processor 6/167/1` with cores, family, model and stepping, which a hypervisor's name lacks."""
    if on_gpu:
        return first_gpu.name if (first_gpu := gpu()) else "GPU"
    first = CPUINFO.read_text(encoding="utf-8").split("\n\n")[0] if CPUINFO.exists() else ""
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in first.splitlines())
    }
    kind = "/".join(fields[key] for key in ("cpu family", "model", "stepping") if key in fields)
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{os.cpu_count()} x {name} {kind}".strip()


def computes_bf16(cpuinfo: Path = CPUINFO) -> bool:
    """Return True if bf16 arithmetic is faster than fp32: CUDA from compute capability 8.0, AMX, AMD's AVX512-BF16,
    Apple silicon. `precision=auto` uses this.

    Emulated bf16 is slow. So is Intel's AVX512-BF16 without AMX: a Xeon has 83 GFLOP/s in bf16, and 142 in fp32."""
    if first_gpu := gpu():
        return first_gpu.compute_capability >= 8.0
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    flags = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    return "amx_bf16" in flags or {"avx512_bf16", "AuthenticAMD"} <= flags


def free_memory() -> int:
    """Return the bytes that this process can still allocate: the machine's available memory, or the memory that
    control groups leave, if less (Linux; elsewhere all the machine's memory)."""
    if platform.system() != "Linux":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = [
        int(
            re.findall(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))[
                0
            ]
        )
        * 1024
    ]
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
            stat = dict(
                line.split()
                for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
            )
            idle = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            yield int(limit_bytes) - int(used.read_text(encoding="utf-8")) + idle


def reset_peak_memory() -> None:
    """Start new peaks of resident memory (on Linux; elsewhere the peak is the process's) and of the GPU's memory."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    if accelerator := accelerator_in_use():
        accelerator.reset_peak_memory_stats()


def accelerator_in_use() -> Any:
    """Return torch's module of the accelerator, such as torch.cuda, if this process has used one, else None."""
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
    return accelerator.max_memory_allocated() if (accelerator := accelerator_in_use()) else None


def peak_memory() -> int:
    """Return the peak of resident memory since `reset_peak_memory`, in bytes."""
    status = Path("/proc/self/status")
    if status.exists() and (
        peak := re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="utf-8"))
    ):
        return int(peak[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if platform.system() == "Darwin" else 1024
    )
