"""Collectives between processes with the pretended accelerator: gloo's, on the same memory."""

from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _create_work_from_future
from torch.distributed.distributed_c10d import ProcessGroup, _world
from torch.futures import Future

BACKEND = "pcl"


def register(device: str) -> None:
    """Register the backend `pcl` for the device and the CPU."""
    dist.Backend.register_backend(BACKEND, create, devices=[device, "cpu"])


def create(store: Any, rank: int, size: int, timeout: Any) -> "Group":
    return Group(dist.ProcessGroupGloo(store, rank, size, timeout), rank, size)


def as_cpu(value: Any) -> Any:
    """Return tensors of the device as CPU tensors on the same memory, in lists too; everything else as it is."""
    if isinstance(value, torch.Tensor):
        return torch.ops.pretend.as_cpu(value)
    return [as_cpu(each) for each in value] if isinstance(value, list | tuple) else value


def finished(result: Any) -> Any:
    future: Future[Any] = Future()
    future.set_result(result)
    return _create_work_from_future(future)


class Group(ProcessGroup):
    """A process group of Python. Every collective has ended when it returns."""

    def __init__(self, gloo: Any, rank: int, size: int):
        super().__init__(rank, size)
        self.gloo, self.place, self.count = gloo, rank, size

    def getBackendName(self) -> str:
        return BACKEND

    def rank(self) -> int:
        return self.place

    def size(self) -> int:
        return self.count

    @property
    def pg_name(self) -> str:
        return _world.pg_names[self]

    @property
    def group_name(self) -> str:
        return self.pg_name

    def shutdown(self) -> None:
        """End gloo's threads, which its destructor waits for. A device mesh still refers to this group."""
        del self.gloo

    def barrier(self, opts: Any = None) -> Any:
        return self.gloo.barrier()


def collective(name: str) -> Any:
    """Return the method that calls gloo's collective of this name and waits for it."""

    def call(self: Group, result: Any, *arguments: Any, **options: Any) -> Any:
        getattr(self.gloo, name)(as_cpu(result), *map(as_cpu, arguments), **options).wait()
        return finished(result)

    return call


def several(name: str) -> Any:
    """Return the method for lists of tensors that calls gloo's collective of one tensor for each."""

    def call(self: Group, results: Any, inputs: Any, *options: Any) -> Any:
        for result, each in zip(results, inputs, strict=True):
            getattr(self.gloo, name)(as_cpu(result), as_cpu(each), *options).wait()
        return finished(results)

    return call


SAME_NAME = [
    "allreduce",
    "allreduce_coalesced",
    "allgather",
    "allgather_coalesced",
    "broadcast",
    "scatter",
    "gather",
    "reduce",
    "reduce_scatter",
    "alltoall",
    "alltoall_base",
    "send",
    "recv",
    "_allgather_base",
    "_reduce_scatter_base",
]
OTHER_NAME = {
    "all_gather_single": "_allgather_base",
    "reduce_scatter_single": "_reduce_scatter_base",
}
SEVERAL = {
    "allgather_into_tensor_coalesced": "_allgather_base",
    "all_gather_single_coalesced": "_allgather_base",
    "reduce_scatter_tensor_coalesced": "_reduce_scatter_base",
    "reduce_scatter_single_coalesced": "_reduce_scatter_base",
}
for name in SAME_NAME:
    setattr(Group, name, collective(name))
for name, gloo_name in OTHER_NAME.items():
    setattr(Group, name, collective(gloo_name))
for name, gloo_name in SEVERAL.items():
    setattr(Group, name, several(gloo_name))
