"""Check the settings of a training: its losses, its micro-batches, and the arguments that go to TRL's trainer."""

import math
from importlib.util import find_spec

from stages.config.blocks.training import DPO, KTO, OBJECTIVES, SFT, Training
from stages.config.choices import SIMPO, Checkpointing, Forward
from stages.config.errors import UserError
from stages.config.installation import install_command

# Arguments of TRL that another key of the block sets, with that key
SET_ELSEWHERE = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "max_steps": "epochs",
    "gradient_accumulation_steps": "batch_size",
    "max_length": "max_length",
    "truncation_mode": "max_length",
    "seed": "seed",
    "data_seed": "seed",
    "bf16": "precision",
    "fp16": "precision",
    "tf32": "precision",
    "bf16_full_eval": "precision",
    "fp16_full_eval": "precision",
    "eval_strategy": "evaluations",
    "eval_steps": "evaluations",
    "eval_on_start": "evaluations",
    "load_best_model_at_end": "evaluations",
    "use_cpu": "runtime.device",
    "per_device_train_batch_size": "runtime.micro_batch",
    "auto_find_batch_size": "runtime.micro_batch",
    "gradient_checkpointing": "runtime.gradient_checkpointing",
    "activation_checkpointing": "runtime.gradient_checkpointing",
    "activation_offloading": "runtime.gradient_checkpointing",
    "dataloader_num_workers": "runtime.loader_workers",
    "save_steps": "runtime.save_steps",
    "save_strategy": "runtime.save_steps",
}
# Arguments that only the stage sets
SET_BY_STAGE = [
    # what is written, and when
    "output_dir",
    "report_to",
    "log_level",
    "log_level_replica",
    "logging_steps",
    "logging_strategy",
    "logging_nan_inf_filter",
    "save_total_limit",
    "save_only_model",
    "push_to_hub",
    # the resume
    "resume_from_checkpoint",
    "ignore_data_skip",
    "enable_jit_checkpoint",
    "restore_callback_states_from_checkpoint",
    # what is measured on held-out rows
    "per_device_eval_batch_size",
    "prediction_loss_only",
    "batch_eval_metrics",
    # the rows of a step, their tokens and labels
    "label_names",
    "label_smoothing_factor",
    "chat_template_path",
    "eos_token",
    "pad_token",
    "assistant_only_loss",
    "completion_only_loss",
    "dataset_kwargs",
    "dataset_num_proc",
    "dataset_text_field",
    "padding_free",
    "packing_strategy",
    "eval_packing",
    "shuffle_dataset",
    "train_sampling_strategy",
    "remove_unused_columns",
    "dataloader_drop_last",
    "average_tokens_across_devices",
    # the model and the reference
    "model_init_kwargs",
    "trust_remote_code",
    "use_cache",
    "sync_ref_model",
    "precompute_ref_log_probs",
    "precompute_ref_batch_size",
    "liger_kernel_config",
    # processes, by launch=ddp, fsdp or zero3
    "fsdp",
    "fsdp_config",
    "deepspeed",
    "ddp_backend",
    "local_rank",
    "accelerator_config",
    "parallelism_config",
    # batches differ in length, so torch would compile again and again
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
]

# Arguments that only these losses of DPO read
READ_BY = {
    "label_smoothing": ("robust", "exo_pair", "aot", "aot_unpaired"),
    "discopop_tau": ("discopop",),
    "f_divergence_type": (
        "sigmoid",
        "sigmoid_norm",
        "hinge",
        "ipo",
        "exo_pair",
        "robust",
        "discopop",
    ),
}
OF_ANY_DIVERGENCE = (*READ_BY["f_divergence_type"], "sft")
# Losses in which the equal tokens at the start of chosen and rejected cancel out
OF_MARGINS = ("sigmoid", "hinge", "robust", "exo_pair", "discopop", "aot", "sft")
# Losses that cannot weight single pairs
UNWEIGHTED = ("aot", "aot_unpaired", "hinge", "sft")


def validate_trainer(name: str, block: Training) -> None:
    """Raise UserError for the first setting of an objective that its trainer cannot use."""
    validate_micro_batch(name, block)
    if block.runtime.gradient_checkpointing not in [Checkpointing.auto, *block.checkpointings]:
        problem = "this does not work with adapters or under ZeRO-3"
        raise UserError(
            f"{name}.runtime.gradient_checkpointing=selective: {problem}. Set none or full."
        )
    for argument in block.trainer.extra:
        message = elsewhere_message(name, argument)
        if argument in vars(block.trainer):
            message = f"this has a key of its own. Set {name}.trainer.{argument} instead."
        if message:
            raise UserError(f"{name}.trainer.extra.{argument}: {message}")
    for option, value in block.trainer.lr_scheduler_kwargs.items():
        if isinstance(value, float) and not math.isfinite(value):  # the rate may be 0 then
            key = f"{name}.trainer.lr_scheduler_kwargs.{option}"
            raise UserError(f"{key}={value}: the value must be a finite number.")
    if block.trainer.use_liger_kernel and (
        block.runtime.device == "cpu" or find_spec("liger_kernel") is None
    ):
        raise UserError(
            f"{name}.trainer.use_liger_kernel: this needs a CUDA device and {install_command('liger')}."
        )
    packed = (
        getattr(block, "packing", True) and getattr(block, "forward", None) is not Forward.padded
    )
    if block.trainer.neftune_noise_alpha is not None and packed:
        raise UserError(
            f"{name}.trainer.neftune_noise_alpha: long packed rows get too little noise. Leave it out."
        )
    if isinstance(block, SFT):
        arguments = block.trainer
        if arguments.loss_type == "dft" and arguments.label_smoothing_factor:
            raise UserError(
                f"{name}.trainer.label_smoothing_factor: the loss dft does not read this. Leave it out."
            )
    if isinstance(block, DPO):
        validate_losses(block)
    if isinstance(block, KTO) and (block.desirable_weight, block.undesirable_weight) == (0, 0):
        raise UserError(
            "kto.desirable_weight=0: both weights are 0, so nothing is learnt. Leave them out."
        )


def elsewhere_message(name: str, argument: str) -> str | None:
    """Return the way out for an argument of TRL that a key of the block `name`, or only its stage, sets; else None."""
    keys = SET_ELSEWHERE | OBJECTIVES[name].typed
    if argument in keys:
        return f"another setting does this. Set {name}.{keys[argument]} instead."
    if argument in SET_BY_STAGE:
        return f"only the {name} stage sets this argument. Leave it out."
    return None


def validate_losses(cfg: DPO) -> None:
    """Refuse combinations of DPO's losses, weights and arguments that TRL does not support, or does not read."""
    losses, weights, arguments = cfg.loss_type, cfg.loss_weights, cfg.trainer
    if not losses:
        raise UserError(
            "dpo.loss_type=[]: the list is empty. Type dpo.loss_type=[sigmoid] for the standard loss."
        )
    if weights is not None and len(weights) != len(losses):
        raise UserError(
            f"dpo.loss_weights has {len(weights)} numbers, but dpo.loss_type has {len(losses)} losses. "
            "Type dpo.loss_weights=null for equal weights."
        )
    if weights is not None and not any(weights):
        raise UserError(
            f"dpo.loss_weights={weights}: all weights are 0, so nothing is learnt. "
            "Type dpo.loss_weights=null for equal weights."
        )
    if SIMPO in losses and len(losses) > 1:
        raise UserError(
            f"dpo.loss_type={losses}: simpo needs no reference, and the other losses do. "
            "Type dpo.loss_type=[simpo] dpo.loss_weights=null, or leave simpo out."
        )
    for name in ("ld_alpha", "router_aux_loss_coef", "use_weighting"):
        if cfg.reference_free and name in arguments.given:
            raise UserError(f"dpo.trainer.{name}: the loss simpo does not read this. Leave it out.")
    divergence = arguments.f_divergence_type or "reverse_kl"
    for loss in losses:
        if divergence != "reverse_kl" and loss not in OF_ANY_DIVERGENCE:
            raise UserError(
                f"dpo.trainer.f_divergence_type={divergence}: the loss {loss} does not support it. "
                f"Set dpo.loss_type to {', '.join(OF_ANY_DIVERGENCE)}."
            )
    if "f_alpha_divergence_coef" in arguments.given and divergence != "alpha_divergence":
        raise UserError(
            "dpo.trainer.f_alpha_divergence_coef: add f_divergence_type: alpha_divergence, which alone reads it."
        )
    if cfg.first_difference and (
        {*losses}.difference(OF_MARGINS) or {"ld_alpha", "f_divergence_type"} & {*arguments.given}
    ):
        raise UserError(
            f"dpo.first_difference=true: only losses of a difference of log-ratios ({', '.join(OF_MARGINS)}) "
            "read cut completions, without ld_alpha or f_divergence_type. Set dpo.first_difference=false."
        )
    argument = unread_argument(cfg)
    if argument:
        raise UserError(
            f"dpo.trainer.{argument}: none of the losses {losses} reads this argument. "
            f"Set dpo.loss_type to one of {', '.join(READ_BY[argument])}, or leave it out."
        )
    if "exo_pair" in losses and not arguments.label_smoothing:
        raise UserError(
            "dpo.loss_type=[exo_pair]: add dpo.trainer.label_smoothing=0.001 (arXiv:2402.00856)."
        )
    if arguments.use_weighting and not {*losses}.isdisjoint(UNWEIGHTED):
        raise UserError(
            "dpo.trainer.use_weighting: the losses aot, aot_unpaired, hinge and sft cannot weight single pairs. "
            "Leave one of the two out."
        )


def unread_argument(cfg: DPO) -> str | None:
    """Return the first argument of `dpo.trainer` that no loss with a weight reads; None if there is none."""
    weights = cfg.loss_weights or [1.0] * len(cfg.loss_type)
    losses = {loss for loss, weight in zip(cfg.loss_type, weights, strict=False) if weight}
    for name, readers in READ_BY.items():
        changed = vars(cfg.trainer)[name] not in (None, 0, "reverse_kl")  # TRL's defaults
        if changed and losses.isdisjoint(readers):
            return name
    return None


def validate_micro_batch(name: str, block: Training) -> None:
    """Check that the rows of a step divide evenly among the processes, and into micro-batches of the given size."""
    runtime, key = block.runtime, f"{name}.runtime.micro_batch"
    if runtime.micro_batch != "auto" and type(runtime.micro_batch) is not int:
        raise UserError(
            f"{key}={runtime.micro_batch}: the value must be a number of rows, or auto."
        )
    if runtime.rows is None and block.by_micro_batch:
        raise UserError(
            f"{key}=auto: with these settings the size of a micro-batch changes the result. Set a number."
        )
    if runtime.rows and runtime.token_budget is not None:
        budget = f"{name}.runtime.token_budget={runtime.token_budget}"
        raise UserError(
            f"{budget}: a token budget needs {key}=auto, but it is {runtime.rows}. Change one of the two."
        )
    if block.batch_size % ((runtime.rows or 1) * runtime.world_size):
        divisor = (
            f"{key}={runtime.rows} × " if runtime.rows else ""
        ) + f"{runtime.world_size} processes"
        problem = f"this is not a multiple of {divisor}, so they cannot share its rows evenly"
        raise UserError(
            f"{name}.batch_size={block.batch_size}: {problem}. Set {name}.batch_size to a multiple."
        )
