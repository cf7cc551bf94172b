"""How many tokens go through the model at once, and which activations are computed again: from the memory there is,
and anew where it was not enough."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from accelerate.utils import gather_object
from transformers import TrainingArguments

from stages.config.choices import Checkpointing
from stages.config.errors import UserError
from stages.config.schema import Training
from stages.hardware import memory
from stages.hardware.model_shape import Shape
from stages.store.work import SCRATCH, Work

Block = TypeVar("Block", bound=Training)
FILE = "budget.json"


def fitted(cfg: Block, args: TrainingArguments, model: Path, out: Work) -> Block:
    """The block with what `runtime` leaves open decided, for a model in a folder that is not loaded yet: token budget
    and gradient checkpointing, which `args` are told. A resume goes on with what was decided, and learnt, before."""
    runtime, file = cfg.runtime, out / SCRATCH / FILE
    tokens: int | None
    if runtime.rows:
        tokens, checkpointing = None, Checkpointing.none
    elif file.exists():
        tokens, kind = json.loads(file.read_text())
        checkpointing = Checkpointing(kind)
    else:
        tokens, checkpointing = decide(cfg, args.device.type, model)
        remember(out, tokens, checkpointing)
    if runtime.token_budget is not None:
        tokens = runtime.token_budget
    if runtime.gradient_checkpointing is not Checkpointing.auto:
        checkpointing = runtime.gradient_checkpointing
    # Divided weights are gathered again where activations are computed twice: by all processes, then, or none.
    checkpointing = max(gather_object([checkpointing]), key=[*Checkpointing].index)
    args.activation_checkpointing = args.gradient_checkpointing = checkpointing is Checkpointing.full
    return replace(cfg, runtime=replace(runtime, token_budget=tokens, gradient_checkpointing=checkpointing))


def decide(cfg: Training, device: str, model: Path) -> tuple[int, Checkpointing]:
    """The token budget, and which activations are computed again; for a model whose shape is not known the largest
    budget there is, which is halved where it is too much."""
    shape = Shape.of(json.loads((model / "config.json").read_text()))
    return memory.token_budget(shape, cfg, device) if shape else (memory.MOST_TOKENS[device], Checkpointing.none)


def remember(out: Work, tokens: int | None, checkpointing: Checkpointing) -> None:
    """Leave the decision for a resume, which would find another amount of memory free."""
    if out.main:
        (out / SCRATCH).mkdir(exist_ok=True)
        draft = out / SCRATCH / f"{FILE}.draft"
        draft.write_text(json.dumps([tokens, checkpointing]))
        draft.replace(out / SCRATCH / FILE)


def divide(costs: list[int], budget: int, padded: bool, least: int = 1) -> list[list[int]]:
    """Micro-batches as lists of places in `costs`, in that order and at least so many: each costs no more than
    `budget`, or is a single row. Padded, every row costs as much as the first of its micro-batch."""
    groups: list[list[int]] = []
    room = 0
    for i, cost in enumerate(costs):
        if groups and padded:
            cost = costs[groups[-1][0]]
        if not groups or cost > room:
            groups.append([])
            cost, room = costs[i], budget
        groups[-1].append(i)
        room -= cost
    while len(groups) < least:
        largest = max(groups, key=len)
        i, half = groups.index(largest), len(largest) // 2
        groups[i : i + 1] = [largest[:half], largest[half:]]
    return groups


def exhausted(cfg: Training, step: int, rows: int, tokens: int, checkpointing: Checkpointing) -> UserError:
    """What to tell where so many rows at once were too much and nothing can be done here."""
    name, runtime = type(cfg).__name__.lower(), cfg.runtime
    if runtime.rows and rows > 1:
        way_out = f"lower {name}.runtime.micro_batch (now {runtime.rows})"
    elif rows > 1:
        way_out = f"set {name}.runtime.token_budget={tokens // 2}"
    elif checkpointing is not Checkpointing.full:
        way_out = f"set {name}.runtime.gradient_checkpointing=full"
    else:
        way_out = f"lower {name}.max_length (now {cfg.max_length}), or train fewer weights with {name}.adapter=lora"
    again = "" if checkpointing is Checkpointing.none else f", {checkpointing} gradient checkpointing"
    return UserError(
        f"out of memory at step {step} with {tokens} tokens of {rows} rows at once{again}: {way_out}. "
        "The same command then resumes from its last checkpoint."
    )
