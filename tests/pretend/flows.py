"""Runs of single stages on the inputs of a built chain, in this process."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from stages.store.store import Store
from stages.store.workspace import StageDir
from tests.helpers import nodes


class EnoughSteps(Exception):
    """Ends a training."""


def run_stage(name: str, root: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    """Run a stage with these overrides on the inputs of the plain chain in `root`. Return its metrics."""
    target, store = f"stage={name}", Store(root)
    node = nodes(root, target, *overrides)[name]
    inputs = {
        role: store.folder(source) for role, source in nodes(root, target)[name].inputs.items()
    }
    folder.mkdir()
    out = StageDir(folder, lambda metrics, step: None)
    return importlib.import_module(f"stages.{node.stage}").run(node.config, inputs, out)


def train_steps(
    steps: int,
    name: str,
    root: Path,
    folder: Path,
    *overrides: str,
) -> list[list[torch.Tensor]]:
    """Run a training stage for some optimizer steps. Return the gradients before each, in the optimizer's order."""
    gradients: list[list[torch.Tensor]] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients.append([weight.grad.detach().clone() for weight in weights])
        if len(gradients) == steps:
            raise EnoughSteps

    hook = register_optimizer_step_pre_hook(keep)
    try:
        run_stage(name, root, folder, *overrides)
    except EnoughSteps:
        return gradients
    finally:
        hook.remove()
    raise AssertionError(f"{name} made fewer than {steps} steps")
