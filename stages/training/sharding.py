"""Shard a model over processes with FSDP2, with the arithmetic of one process.

With precision=bf16 one process trains under autocast: weights, residual stream, norms and embeddings are in fp32, and
linear layers compute in bf16. Accelerate would have FSDP2 cast everything to bf16 and reduce gradients in bf16. Here
it gathers only the layers' linear weights in bf16, autocast does the rest, and gradients are reduced in fp32."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed.fsdp
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import Trainer

from stages.config.choices import Precision


def precision_policy(precision: Precision) -> MixedPrecisionPolicy:
    """Return the dtypes in which FSDP2 gathers the layers' linear weights and reduces gradients."""
    gathered = torch.bfloat16 if precision is Precision.bf16 else None
    return MixedPrecisionPolicy(
        param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def replace_meta_parameters(model: torch.nn.Module) -> None:
    """Give parameters on the meta device an address, by which TRL and accelerate tell them apart, and no memory."""
    for parameter in model.parameters():
        if parameter.is_meta:
            empty = torch.nn.Parameter(
                torch.empty_like(parameter, device="cpu"), parameter.requires_grad
            )
            torch.utils.swap_tensors(parameter, empty)  # type: ignore[no-untyped-call]


@contextmanager
def like_autocast(trainer: Trainer) -> Iterator[None]:
    """While accelerate shards the trainer's model, gather weights that autocast leaves in fp32 in their own dtype; and
    run its forward under autocast, which accelerate does without sharding only."""
    trainer.accelerator.prepare_model(trainer.model, device_placement=False, evaluation_mode=True)
    fully_shard = torch.distributed.fsdp.fully_shard
    layers = set(trainer.model._no_split_modules or ())

    def shard(module: Any, *, mp_policy: MixedPrecisionPolicy, **options: Any) -> Any:
        own_dtype = replace(mp_policy, param_dtype=None)
        # embeddings, last norm and head, or the model around all
        if type(module).__name__ not in layers:
            return fully_shard(module, mp_policy=own_dtype, **options)
        for part in module.modules():
            if [*part.parameters(recurse=False)] and not isinstance(part, torch.nn.Linear):
                fully_shard(part, mp_policy=own_dtype, **options)
        return fully_shard(module, mp_policy=mp_policy, **options)

    with patch.object(torch.distributed.fsdp, "fully_shard", shard):
        yield
