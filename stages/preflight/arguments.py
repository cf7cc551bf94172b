"""Ask TRL whether it takes the arguments of a training, before anything is built."""

from dataclasses import fields
from typing import Any, get_args

from stages.config.choices import SCHEDULES_WITH_OPTIONS
from stages.config.errors import UserError, suggest
from stages.store.node import Node
from stages.store.store import Store

STEPS = 1_000_000  # of a training that is long enough for every schedule
# a training on any machine, without a warning
PLAIN = {"output_dir": "", "use_cpu": True, "bf16": False, "activation_checkpointing": False}


def require_arguments(node: Node, store: Store) -> None:
    """Raise UserError for arguments that TRL's class, transformers' optimizer or the schedule refuses. TRL takes
    seconds to import, so it is only asked about what the types of `trainer` leave open."""
    block, trainer = node.config, node.config.trainer
    key = f"{block.block}.trainer"
    is_open = trainer.extra or trainer.optim or trainer.lr_scheduler_kwargs
    if not is_open and trainer.lr_scheduler_type not in SCHEDULES_WITH_OPTIONS:
        return
    import torch
    from transformers import Trainer, get_scheduler

    kind = block.objective.arguments_class
    types = {field.name: field.type for field in fields(kind)}
    for name, value in trainer.extra.items():
        if name not in types:
            problem = f"{key}.extra.{name}: TRL's trainer does not have this argument"
            raise UserError(f"{problem}.{suggest(name, types)}")
        required = required_type(types[name], value)
        if required:
            raise UserError(f"{key}.extra.{name}={value}: the value must be {required}.")
    layer = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=block.learning_rate)
    try:
        arguments = kind(**PLAIN | trainer.given)
        key = f"{block.block}.trainer.optim"
        Trainer.get_optimizer_cls_and_kwargs(arguments, layer)
        key = f"{block.block}.trainer.lr_scheduler_kwargs"
        options = arguments.lr_scheduler_kwargs
        get_scheduler(
            arguments.lr_scheduler_type, optimizer, 0, STEPS, scheduler_specific_kwargs=options
        )
    except (TypeError, ValueError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{key}: transformers refuses this: {reason}") from error


def required_type(written: Any, value: Any) -> str | None:
    """Return what a value has to be by its type in TRL, if that is a number or a switch and it is not one."""
    if value is None:
        return None
    kinds = {*(get_args(written) or [written])} - {type(None)}
    is_switch = isinstance(value, bool)
    if kinds <= {int, float} and (is_switch or not isinstance(value, int | float)):
        return "a number"
    return "true or false" if kinds == {bool} and not is_switch else None
