"""Register the pretended accelerator in this process."""

import contextlib
import ctypes
import os
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests import flash_reference
from tests.pretend import build, libraries, process_group

NAME = "pretend"
ROOT = Path(__file__).parents[2]
AUTOLOAD = Path(__file__).with_name("autoload")
MEMORY = 8 << 30  # bytes
LISTENER = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


@cache
def library() -> Any:
    """Load the library into this process, and register the device. It is not available before `make_available`."""
    path = build.build()
    torch.ops.load_library(path)
    loaded = ctypes.CDLL(str(path))
    for function in (loaded.pretend_allocated, loaded.pretend_peak):
        function.restype = ctypes.c_int64
    torch.utils.rename_privateuse1_backend(NAME)
    loaded.pretend_register()
    torch._register_device_module(NAME, Module(loaded))  # type: ignore[attr-defined]
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    torch.library.Library("aten", "IMPL").impl(
        "record_stream", lambda tensor, stream: None, "PrivateUse1"
    )
    # whose kernels are lent memory
    torch.get_device_module(NAME).flash_attention = flash_reference.register("CPU")
    process_group.register(NAME)
    libraries.patch_after_import(NAME)
    return loaded


def make_available(on: bool = True) -> None:
    """Make the device the one that torch.accelerator, transformers and accelerate find, or hide it."""
    library().pretend_set_available(on)
    torch.get_device_module(NAME).on = on
    # Module.to takes this device for one that cannot share a parameter, and would separate tied weights.
    torch.__future__.set_swap_module_params_on_conversion(on)
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    if on:
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        library().pretend_set_device(rank)
        os.environ["ACCELERATE_TORCH_DEVICE"] = f"{NAME}:{rank}"


@contextlib.contextmanager
def available(on: bool = True) -> Iterator[None]:
    """Make the device available in a block, or hide it there."""
    library()
    before = torch.get_device_module(NAME).is_available()
    make_available(on)
    try:
        yield
    finally:
        make_available(before)


def autoload() -> None:
    """Make the device available when a process in an `environment` imports torch, which calls this entry point."""
    make_available()


def environment(**variables: str) -> dict[str, str]:
    """Return the environment variables of a process, and of its children, that has the device."""
    build.build()
    path = os.pathsep.join(filter(None, (str(AUTOLOAD), str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **variables}


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Refuse CPU tensors as indices of device tensors as well, which CUDA copies to the device at each use."""
    library().pretend_set_strict(True)
    try:
        yield
    finally:
        library().pretend_set_strict(False)


class Stream:
    """The one stream of the device: everything is done when it is called."""

    def __init__(self, *_: Any, **__: Any):
        self.device, self.stream_id = torch.device(NAME, 0), 0

    def record_event(self, event: "Event | None" = None) -> "Event":
        return event or Event()

    def synchronize(self) -> None: ...
    def wait_stream(self, stream: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def query(self) -> bool:
        return True


class Event(torch.Event):
    """An event that is over at once; a stream of torch.accelerator reads it as one of torch's."""

    def __new__(cls, *_: Any, **__: Any) -> "Event":
        return super().__new__(cls, NAME)

    def __init__(self, *_: Any, **__: Any): ...
    def record(self, stream: Any = None) -> None: ...
    def wait(self, stream: Any = None) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, event: Any) -> float:
        return 0.0


class Module(types.ModuleType):
    """The device's module, as torch.cuda is CUDA's. Random numbers are the CPU's."""

    Stream, Event = Stream, Event

    def __init__(self, loaded: Any):
        super().__init__(f"torch.{NAME}")
        self.on, self.loaded, self.stream_in_use = False, loaded, Stream()
        nothing, no_context = lambda *_, **__: None, lambda *_, **__: contextlib.nullcontext()
        state = torch.zeros(1, dtype=torch.uint8)
        for name in [
            "synchronize",
            "empty_cache",
            "manual_seed",
            "manual_seed_all",
            "set_rng_state",
            "set_rng_state_all",
        ]:
            setattr(self, name, nothing)
        self.set_stream, self.stream, self.get_rng_state = nothing, no_context, lambda *_: state
        self.get_rng_state_all = lambda: [state]
        self.is_initialized = self.is_available = lambda: self.on
        self._is_in_bad_fork = self.is_current_stream_capturing = lambda: False
        self.is_bf16_supported = lambda *_: True
        self.current_stream = self.default_stream = lambda *_: self.stream_in_use
        self.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16, torch.float32]
        self.current_device, self.device_count = loaded.pretend_device, loaded.pretend_device_count
        self.memory_allocated = lambda *_: loaded.pretend_allocated()
        self.max_memory_allocated = lambda *_: loaded.pretend_peak()
        self.reset_peak_memory_stats = lambda *_: loaded.pretend_reset_peak()
        self.mem_get_info = lambda *_: (MEMORY - loaded.pretend_allocated(), MEMORY)
        self.get_device_properties = lambda *_: types.SimpleNamespace(
            name=NAME, total_memory=MEMORY
        )

    def set_device(self, device: Any) -> None:
        index = (
            torch.device(device).index if isinstance(device, str | torch.device) else int(device)
        )
        self.loaded.pretend_set_device(index or 0)

    @contextlib.contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before = self.current_device()
        self.set_device(device)
        try:
            yield
        finally:
            self.set_device(before)
