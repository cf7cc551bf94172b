"""Translate a stage's config block into TRL's training arguments."""

from copy import copy
from typing import Any

from accelerate.utils import enable_fsdp_ram_efficient_loading
from transformers import TrainingArguments

from stages.config.blocks.objective import Training
from stages.config.choices import Precision, Sharding
from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.models.loading import resolve_device
from stages.store.workspace import StageDir
from stages.training import sharding
from stages.training.saving import checkpoint_folder


def training_arguments(
    cfg: Training, out: StageDir, **objective_arguments: Any
) -> TrainingArguments:
    """Return TRL's arguments for a block, with the objective's own. TRL's batch is all rows of an optimizer step.
    Raise UserError if TRL refuses a key of `trainer`, if this process sees several GPUs, if the number of processes is
    not the one in the config, or if a model should be sharded over CPUs."""
    runtime = cfg.runtime
    arguments_class = cfg.objective.arguments_class
    settings = dict(
        output_dir=str(checkpoint_folder(out)),
        learning_rate=cfg.learning_rate,
        num_train_epochs=cfg.epochs,
        # `micro_batches` divides it
        per_device_train_batch_size=cfg.batch_size // runtime.world_size,
        gradient_accumulation_steps=1,
        per_device_eval_batch_size=1,  # eval_loss is then a mean over examples, not over batches
        seed=cfg.seed,
        bf16=cfg.precision is Precision.bf16,
        use_cpu=resolve_device(runtime.device).type == "cpu",
        activation_checkpointing=False,  # `budget` decides later
        dataloader_num_workers=runtime.loader_workers,
        accelerator_config={"non_blocking": True},  # evaluated rows are in pinned memory
        save_strategy="steps",
        save_steps=runtime.save_steps,
        eval_strategy="no",  # `EvaluationTimes` decides
        logging_steps=1,  # `DivergenceCheck` needs every step
        logging_nan_inf_filter=False,
        prediction_loss_only=True,
        report_to="none",
        log_level_replica="error",
        ddp_find_unused_parameters=False,  # the search is slow; a mixture of experts may need it
        **read_beside(__file__)[runtime.sharding],
        **{argument: copy(getattr(cfg, key)) for argument, key in cfg.objective.typed.items()},
        **objective_arguments,
    )
    if cfg.trainer.use_liger_kernel:  # its fused head replaces the forward that has ours
        settings["liger_kernel_config"] = {"fused_linear_cross_entropy": False}
    if "max_length" in arguments_class.__dataclass_fields__:
        settings["max_length"] = cfg.max_length
    if "router_aux_loss_coef" in arguments_class.__dataclass_fields__:
        # The auxiliary loss of a mixture of experts depends on the micro-batches: it is off unless `trainer` sets it.
        settings["router_aux_loss_coef"] = 0.0
    try:
        args: TrainingArguments = arguments_class(**settings | cfg.trainer.given)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"TRL refuses {arguments_class.__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    if args.n_gpu > 1:
        raise UserError(
            "one process trains on one GPU, but sees several. Set CUDA_VISIBLE_DEVICES=0 or launch=ddp."
        )
    if args.world_size != runtime.world_size:
        raise UserError(
            f"{args.world_size} processes are connected, but the config asks for {runtime.world_size}."
        )
    if runtime.sharding is Sharding.fsdp:
        if args.device.type == "cpu":
            raise UserError(
                "launch=fsdp shards a model over GPUs, but these processes use the CPU. Use launch=ddp."
            )
        args.fsdp_plugin_args["mixed_precision_policy"] = sharding.precision_policy(cfg.precision)
        enable_fsdp_ram_efficient_loading()  # what loads a model from here on heeds it
    return args
