"""TRL's training arguments from a block of ours."""

from copy import copy
from typing import Any

import trl
from transformers import TrainingArguments

from stages.config.blocks.training import Training
from stages.config.choices import Precision, Sharding
from stages.config.errors import UserError
from stages.models.loading import resolve_device
from stages.store.workspace import StageDir
from stages.training.saving import checkpoint_folder

# TRL's arguments that shard weights, gradients and optimizer state among the processes.
SHARDING_ARGUMENTS: dict[Sharding, dict[str, Any]] = {
    Sharding.none: {},
    Sharding.fsdp: {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}},
    Sharding.zero3: {
        "deepspeed": {
            "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
            "bf16": {"enabled": "auto"},
            "gradient_clipping": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
        }
    },
}


def arguments(cfg: Training, out: StageDir, **objective_arguments: Any) -> TrainingArguments:
    """TRL's arguments from a block, and `own` of its objective. TRL's batch is all rows of an optimizer step.

    Raises:
        UserError: for what TRL refuses of `trainer`, where more than one GPU is visible to this one process, and where
            there are other processes than those asked for.
    """
    runtime, arguments_class = cfg.runtime, getattr(trl, cfg.objective.trl)
    settings = dict(
        output_dir=str(checkpoint_folder(out)),
        learning_rate=cfg.learning_rate,
        num_train_epochs=cfg.epochs,
        per_device_train_batch_size=cfg.batch_size // runtime.world_size,  # divided in `micro_batches`
        gradient_accumulation_steps=1,
        per_device_eval_batch_size=1,  # eval_loss is then a mean over examples, not over batches
        max_length=cfg.max_length,
        seed=cfg.seed,
        bf16=cfg.precision is Precision.bf16,
        use_cpu=resolve_device(runtime.device).type == "cpu",
        activation_checkpointing=False,  # until `budget` says otherwise
        dataloader_num_workers=runtime.loader_workers,
        save_strategy="steps",
        save_steps=runtime.save_steps,
        eval_strategy="no",  # `Evaluations` says when
        logging_steps=1,  # so that `Watch` sees every step
        logging_nan_inf_filter=False,
        prediction_loss_only=True,
        report_to="none",
        log_level_replica="error",
        ddp_find_unused_parameters=False,  # the search is slow; a mixture of experts may need it
        **SHARDING_ARGUMENTS[runtime.sharding],
        **{argument: copy(getattr(cfg, key)) for argument, key in cfg.objective.typed.items()},
        **objective_arguments,
    )
    if "router_aux_loss_coef" in arguments_class.__dataclass_fields__:
        # The auxiliary loss of a mixture of experts is a mean of micro-batch means: it is off unless `trainer` asks.
        settings["router_aux_loss_coef"] = 0.0
    try:
        args: TrainingArguments = arguments_class(**settings | cfg.trainer)
    except (TypeError, ValueError) as error:
        raise UserError(f"TRL refuses {arguments_class.__name__}: {' '.join(str(error).split())[:300]}") from error
    if args.n_gpu > 1:
        one = "set CUDA_VISIBLE_DEVICES=0, or launch=ddp"
        raise UserError(f"more than one GPU is visible. One process trains on one: {one}.")
    if args.world_size != runtime.world_size:
        raise UserError(f"{args.world_size} processes found each other; {runtime.world_size} were to be started.")
    return args
