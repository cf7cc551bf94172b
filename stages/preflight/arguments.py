"""Ask TRL whether it takes the arguments of a training, before anything is built. Warn of those that it will drop."""

from collections.abc import Iterator
from contextlib import contextmanager

from stages.config.choices import SCHEDULES_WITH_OPTIONS
from stages.config.errors import UserError
from stages.config.schema import Config
from stages.store.node import Node
from stages.store.sealed_json import warn_once
from stages.store.store import Store

MANY_STEPS = 1_000_000  # of a training that is long enough for every schedule
# of a training on any machine, without a warning
PLAIN_ARGUMENTS = {
    "output_dir": "",
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
}
# Arguments that TRL 2.0 takes no more
DROPPED_BY_TRL_2 = ("use_liger_kernel", "label_smoothing_factor")


def warn_of_dropped_arguments(cfg: Config) -> None:
    """Warn of arguments that TRL 2.0 drops, for TRL's own warnings are silenced."""
    for name, block in cfg.trained.items():
        for argument in DROPPED_BY_TRL_2:
            value = block.trainer.given.get(argument)
            if value:
                warn_once(
                    f"{name}.trainer.{argument}={str(value).lower()}: TRL 2.0 drops this argument. Leave it out of a "
                    "recipe that is to outlive TRL 1."
                )


def require_accepted_arguments(training: Node, store: Store) -> None:
    """Raise UserError for arguments that TRL's class or transformers' schedule refuses. TRL is only asked about what the
    types of `trainer` leave open."""
    trainer = training.config.trainer
    types_leave_open = trainer.extra or trainer.optim or trainer.lr_scheduler_kwargs
    if not types_leave_open and trainer.lr_scheduler_type not in SCHEDULES_WITH_OPTIONS:
        return  # TRL takes seconds to import
    key = f"{training.config.block}.trainer"
    arguments_class = training.config.objective.arguments_class
    import torch
    from transformers import Trainer, get_scheduler

    layer = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=training.config.learning_rate)
    with refusals_as_user_errors(key):
        arguments = arguments_class(**PLAIN_ARGUMENTS | trainer.given)
        Trainer.get_optimizer_cls_and_kwargs(arguments, layer)
    with refusals_as_user_errors(f"{key}.lr_scheduler_kwargs"):
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer,
            num_warmup_steps=0,
            num_training_steps=MANY_STEPS,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )


@contextmanager
def refusals_as_user_errors(key: str) -> Iterator[None]:
    """Raise UserError with the key for an error of transformers that is raised inside."""
    try:
        yield
    except (TypeError, ValueError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{key}: transformers refuses this: {reason}") from error
