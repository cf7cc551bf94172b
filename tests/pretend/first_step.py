"""Train until the first optimizer step: `python -m tests.pretend.first_step STAGE ROOT FILE OVERRIDE…`.

The process writes its gradients as the step would use them, whole and in the optimizer's order; the bytes on its
device before each micro-batch; and the bytes of weights that it read from files.
"""

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import LlamaForCausalLM

from stages.models import loading
from tests.pretend.flows import EnoughSteps, run_stage


def main(stage: str, root: Path, file: Path, *overrides: str) -> None:
    before_forward, read = list[int](), list[int]()
    load_weights = loading.load_weights

    def count_read(*args: Any, **options: Any) -> Any:
        model, missing = load_weights(*args, **options)
        read.append(sum(weight.nbytes for weight in model.parameters() if not weight.is_meta))
        return model, missing

    def note_memory(module: torch.nn.Module, _: Any) -> None:
        if module.training and isinstance(module, LlamaForCausalLM):
            before_forward.append(torch.get_device_module("pretend").memory_allocated())

    def finish(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
        whole = [g.full_tensor() if isinstance(g, DTensor) else g for g in gradients]
        state = {
            "gradients": [g.cpu() for g in whole],
            "before_forward": before_forward,
            "read": sum(read),
        }
        torch.save(state, file)
        raise EnoughSteps

    register_module_forward_pre_hook(note_memory)
    register_optimizer_step_pre_hook(finish)
    with mock.patch.object(loading, "load_weights", count_read):
        try:
            run_stage(stage, root, file.with_suffix(""), *overrides)
        except EnoughSteps:
            return
    raise AssertionError(f"{stage} made no step")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
