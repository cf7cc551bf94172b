"""Gradient checkpointing: which activations the forward keeps, and which the backward recomputes."""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from stages.config.choices import Checkpointing

aten = torch.ops.aten
# The operations that take most of a forward's time: matrix products and attention, on every device.
COSTLY = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._grouped_mm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


def enable(model: PreTrainedModel, checkpointing: Checkpointing) -> None:
    """Have every layer keep its inputs and, if `selective`, the outputs of COSTLY operations; the backward recomputes
    the rest. Gradients are the same to the bit. (TRL's own selective checkpointing keeps those of attention alone.)"""
    how: dict[str, Any] = {"use_reentrant": False}
    if checkpointing is Checkpointing.selective:
        how["context_fn"] = partial(create_selective_checkpoint_contexts, keep)
    model.activation_checkpointing_enable(how)


def keep(_: Any, operation: Any, *args: Any, **__: Any) -> CheckpointPolicy:
    """Keep the outputs of COSTLY operations, and autocast's copies of weights: one for any number of tokens."""
    cast = operation is aten._to_copy.default and isinstance(args[0], torch.nn.Parameter)
    return CheckpointPolicy.MUST_SAVE if cast or operation in COSTLY else CheckpointPolicy.PREFER_RECOMPUTE
