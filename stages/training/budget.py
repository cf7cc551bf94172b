"""Decide the token budget of a micro-batch and gradient checkpointing, from free memory before the model is loaded. A
resumed run reuses the decision. `micro_batches` lowers the budget if memory runs out all the same."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel, TrainingArguments

from stages.config.blocks.objective import Training
from stages.config.choices import Checkpointing
from stages.config.errors import UserError
from stages.hardware import memory
from stages.hardware.model_shape import ModelShape
from stages.store.sealed_json import load_json, read_note, require_keys, write_note
from stages.store.workspace import SCRATCH, StageDir

Block = TypeVar("Block", bound=Training)
FILE = "budget.json"

# In the names of matrix products and attention, which take most of a forward's time on every device. `torch_attn` is
# the namespace of `varlen_attn`.
COSTLY = re.compile(
    r"aten::(_grouped_mm|addmm|bmm|mm|_scaled_dot_product_\w+_attention(_for_cpu)?)|torch_attn::.*"
)
CAST = "aten::_to_copy"


def decide_open_settings(cfg: Block, args: TrainingArguments, model: Path, out: StageDir) -> Block:
    """Return the block with token budget and gradient checkpointing decided, if `runtime` leaves them open. Set the
    checkpointing in `args` too. Call this before loading the model from the folder `model`: the decision uses the free
    memory. A resumed run takes the last decision of the run before it."""
    runtime = cfg.runtime
    decided = read_note(out / SCRATCH / FILE, parse_decision)
    if runtime.rows:
        decided = (None, Checkpointing.none)
    elif not decided:
        decided = fit_memory(cfg, args.device.type, model)
        write_decision(out, *decided)
    tokens, checkpointing = decided
    if runtime.token_budget is not None:
        tokens = runtime.token_budget
    if runtime.gradient_checkpointing is not Checkpointing.auto:
        checkpointing = runtime.gradient_checkpointing
    # Recomputing a layer gathers its sharded weights again, which needs every process. So all processes use the
    # checkpointing of the process that recomputes most.
    checkpointing = max(gather_object([checkpointing]), key=[*Checkpointing].index)
    args.activation_checkpointing = args.gradient_checkpointing = (
        checkpointing is Checkpointing.full
    )
    return replace(
        cfg, runtime=replace(runtime, token_budget=tokens, gradient_checkpointing=checkpointing)
    )


def fit_memory(cfg: Training, device: str, model: Path) -> tuple[int, Checkpointing]:
    """Return token budget and gradient checkpointing for the free memory. For a model of unknown shape this is the
    largest budget, which is halved when memory runs out."""
    shape = ModelShape.from_config(load_json(model / "config.json", require_keys()))
    if shape is None:
        return memory.most_tokens(device), Checkpointing.none
    return memory.token_budget(shape, cfg, device)


def write_decision(out: StageDir, tokens: int | None, checkpointing: Checkpointing) -> None:
    """Write the decision for a resumed run, which may find another amount of free memory."""
    if out.is_main:
        (out / SCRATCH).mkdir(exist_ok=True)
        write_note(out / SCRATCH / FILE, [tokens, checkpointing])


def parse_decision(value: Any) -> tuple[int | None, Checkpointing]:
    """Return token budget and checkpointing from the content of the decision's file."""
    tokens, checkpointing = value
    return None if tokens is None else int(tokens), Checkpointing(checkpointing)


def out_of_memory_error(
    cfg: Training, step: int, rows: int, tokens: int, checkpointing: Checkpointing
) -> UserError:
    """Return the error for a micro-batch that does not fit and cannot be divided further; it names the key to set."""
    name = cfg.block
    runtime = cfg.runtime
    if runtime.rows and rows > 1:
        way_out = f"lower {name}.runtime.micro_batch (now {runtime.rows})"
    elif rows > 1:
        way_out = f"set {name}.runtime.token_budget={tokens // 2}"
    elif checkpointing is not Checkpointing.full:
        way_out = f"set {name}.runtime.gradient_checkpointing=full"
    else:
        way_out = f"lower {name}.max_length (now {cfg.max_length}), or train fewer weights with {name}.adapter=lora"
    recomputation = ""
    if checkpointing is not Checkpointing.none:
        recomputation = f", {checkpointing} gradient checkpointing"
    size = f"a micro-batch has {rows} rows with {tokens} tokens{recomputation}"
    resumes = "The same command then resumes from the last checkpoint."
    return UserError(f"out of memory at step {step}: {size}: {way_out}. {resumes}")


def enable_checkpointing(model: PreTrainedModel, checkpointing: Checkpointing) -> None:
    """Make every layer store its inputs and, if `selective`, the outputs of COSTLY operations; the backward recomputes
    the rest. Gradients are equal to the bit. (TRL's selective checkpointing stores only attention outputs.)"""
    options: dict[str, Any] = {"use_reentrant": False}
    if checkpointing is Checkpointing.selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, save_costly_outputs)
    model.activation_checkpointing_enable(options)


def save_costly_outputs(_: Any, operation: Any, *args: Any, **__: Any) -> CheckpointPolicy:
    """Return the policy to save outputs of COSTLY operations and autocast's copies of weights."""
    name = operation.name()
    rounds_weight = name == CAST and isinstance(args[0], torch.nn.Parameter)
    if rounds_weight or COSTLY.fullmatch(name):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
