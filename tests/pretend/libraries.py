"""Make accelerate and transformers accept the pretended accelerator: each has a list of the devices it knows."""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from tests.pretend.process_group import BACKEND


def patch_after_import(name: str) -> None:
    """Patch both libraries, now or when they are imported. Without the device they do as before."""

    def available():
        return torch.get_device_module(name).is_available()

    def patch_state(module: ModuleType) -> None:
        original = module.PartialState._prepare_backend

        def prepare_backend(
            self: Any, cpu: bool = False, *rest: Any, **options: Any
        ) -> tuple[Any, Any]:
            if cpu or not available() or "LOCAL_RANK" not in os.environ:
                return original(self, cpu, *rest, **options)
            return BACKEND, module.DistributedType.MULTI_GPU

        module.PartialState._prepare_backend = prepare_backend

    def patch_arguments(module: ModuleType) -> None:
        original = module.is_torch_bf16_gpu_available
        module.is_torch_bf16_gpu_available = lambda: available() or original()

    patches = {"accelerate.state": patch_state, "transformers.training_args": patch_arguments}
    for module_name, patch in patches.items():
        if module := sys.modules.get(module_name):
            patch(module)
    sys.meta_path.insert(0, Patcher(patches))


class Patcher(importlib.abc.MetaPathFinder):
    """Call a patch when its module has been imported."""

    def __init__(self, patches: dict[str, Callable[[ModuleType], None]]):
        self.patches = patches

    def find_spec(
        self, fullname: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.patches:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec
        assert spec.loader
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            self.patches[fullname](module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec
