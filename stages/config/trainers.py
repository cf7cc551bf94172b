"""Check the settings of a training: its losses, its micro-batches, and the arguments that go to TRL's trainer."""

from importlib.util import find_spec

from stages.config.blocks.objective import Training
from stages.config.blocks.pair_loss import PairLoss
from stages.config.blocks.training import BLOCKS
from stages.config.choices import SIMPO, Checkpointing, Forward
from stages.config.errors import SYNONYMS, UserError, nearest
from stages.config.installation import install_command

# The arguments of TRL that `trainer.extra` passes on, with the types of their values. All others are keys of the block,
# are set by the stage, or would change its rows.
PASSED_ON: dict[str, type | tuple[type, ...]] = {
    "activation_checkpointing_kwargs": dict,
    "dataloader_persistent_workers": bool,
    "dataloader_pin_memory": bool,
    "dataloader_prefetch_factor": int,
    "ddp_broadcast_buffers": bool,
    "ddp_bucket_cap_mb": int,
    "ddp_find_unused_parameters": bool,
    "ddp_static_graph": bool,
    "full_determinism": bool,
    "gradient_checkpointing_kwargs": dict,
    "optim_args": str,
    "optim_target_modules": (str, list),
    "pad_to_multiple_of": int,
    "torch_empty_cache_steps": int,
}
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
# Arguments that TRL's trainer reads, and SimPO and user-defined losses do not
OF_TRL_LOSSES = ("ld_alpha", "router_aux_loss_coef", "use_weighting")


def validate_trainer(objective: str, block: Training) -> None:
    """Raise UserError for the first setting of an objective that its trainer cannot use."""
    block.check()
    validate_micro_batch(objective, block)
    key = f"{objective}.trainer"
    if block.runtime.gradient_checkpointing not in [
        Checkpointing.auto,
        *block.usable_checkpointings,
    ]:
        raise UserError(
            f"{objective}.runtime.gradient_checkpointing=selective: adapters and ZeRO-3 cannot use this. "
            "Set none or full."
        )
    for argument, value in block.trainer.extra.items():
        message = not_passed_on_message(objective, argument)
        if message:
            raise UserError(f"{key}.extra.{argument}: {message}")
        if value is not None and not isinstance(value, PASSED_ON[argument]):
            raise UserError(f"{key}.extra.{argument}={value}: TRL takes no such value.")
    on_cpu = block.runtime.device == "cpu"
    if block.trainer.use_liger_kernel and (on_cpu or find_spec("liger_kernel") is None):
        raise UserError(
            f"{key}.use_liger_kernel: this needs a CUDA device and {install_command('liger')}."
        )
    is_padded = getattr(block, "forward", None) is Forward.padded or not getattr(
        block, "packing", True
    )
    if block.trainer.neftune_noise_alpha is not None and not is_padded:
        raise UserError(
            f"{key}.neftune_noise_alpha: packed rows get too little noise. Leave it out."
        )
    if isinstance(block, PairLoss):
        validate_losses(block)


def not_passed_on_message(objective: str, argument: str) -> str | None:
    """Return the way out for an argument that an objective's block does not pass on to TRL; None if it does."""
    if argument in PASSED_ON:
        return None
    block = BLOCKS[objective]()
    our_name = SYNONYMS.get(argument, argument)
    for key, part in {"": block, "runtime.": block.runtime, "trainer.": block.trainer}.items():
        if our_name in vars(part):
            return f"another setting does this. Set {objective}.{key}{our_name} instead."
    near = nearest(argument, [*PASSED_ON, *vars(block.trainer)], 0.8)
    way_out = f"Did you mean {near!r}?" if near else "Leave it out."
    return f"TRL does not have this argument, or only the {objective} stage sets it. {way_out}"


def validate_losses(cfg: PairLoss) -> None:
    """Raise UserError for losses of pairs, weights and arguments that do not work together, or that no loss reads."""
    losses, weights, arguments = cfg.loss_type, cfg.loss_weights, cfg.trainer
    block = cfg.block
    if not losses and cfg.has_trl_loss:
        raise UserError(f"{block}.loss_type=[] is empty. Type {block}.loss_type=[sigmoid].")
    if weights is not None and (len(weights) != len(losses) or not any(weights)):
        raise UserError(
            f"{block}.loss_weights={weights}: {len(losses)} losses need as many weights, not all 0. "
            f"Type {block}.loss_weights=null for equal weights."
        )
    if SIMPO in losses and len(losses) > 1:
        raise UserError(
            f"{block}.loss_type={losses}: simpo needs no reference, and the other losses do. "
            f"Type {block}.loss_type=[simpo] {block}.loss_weights=null, or leave simpo out."
        )
    divergence = arguments.f_divergence_type or "reverse_kl"
    for loss in losses:
        if divergence != "reverse_kl" and loss not in OF_ANY_DIVERGENCE:
            raise UserError(
                f"{block}.trainer.f_divergence_type={divergence}: the loss {loss} does not support it. Leave it out."
            )
    given = {*arguments.given}
    if cfg.first_difference and (
        {*losses}.difference(OF_MARGINS) or {"ld_alpha", "f_divergence_type"} & given
    ):
        raise UserError(
            f"{block}.first_difference=true: only {', '.join(OF_MARGINS)} read cut completions, without ld_alpha or "
            f"f_divergence_type. Set {block}.first_difference=false."
        )
    argument = unread_argument(cfg)
    if argument:
        raise UserError(
            f"{block}.trainer.{argument}: the loss {cfg.loss_names} does not read this. Leave it out."
        )
    if "exo_pair" in losses and not arguments.label_smoothing:
        raise UserError(
            f"{block}.loss_type=[exo_pair]: add {block}.trainer.label_smoothing=0.001 (arXiv:2402.00856)."
        )
    if arguments.use_weighting and not {*losses}.isdisjoint(UNWEIGHTED):
        raise UserError(
            f"{block}.trainer.use_weighting: aot, aot_unpaired, hinge and sft cannot weight single pairs. Leave it out."
        )


def unread_argument(cfg: PairLoss) -> str | None:
    """Return the first argument in `trainer` that no loss with a weight reads; None if there is none."""
    weights = cfg.loss_weights or [1.0] * len(cfg.loss_type)
    weighted_losses = {loss for loss, weight in zip(cfg.loss_type, weights, strict=True) if weight}
    for argument, readers in READ_BY.items():
        is_set = vars(cfg.trainer)[argument] not in (None, 0, "reverse_kl")  # TRL's defaults
        if is_set and weighted_losses.isdisjoint(readers):
            return argument
    for argument in OF_TRL_LOSSES:
        if not cfg.has_trl_loss and argument in cfg.trainer.given:
            return argument
    return None


def validate_micro_batch(objective: str, block: Training) -> None:
    """Raise UserError for a micro-batch that is no number or auto, whose size must be set, that a token budget sets
    too, or that does not divide the batch evenly among the processes."""
    runtime = block.runtime
    key = f"{objective}.runtime.micro_batch={runtime.micro_batch}"
    if runtime.micro_batch != "auto" and type(runtime.micro_batch) is not int:
        raise UserError(f"{key}: the value must be a number of rows, or auto.")
    if runtime.rows is None and block.depends_on_micro_batch:
        raise UserError(f"{key}: with these settings its size changes the result. Set a number.")
    if runtime.rows and runtime.token_budget is not None:
        raise UserError(
            f"{objective}.runtime.token_budget={runtime.token_budget}: this needs "
            f"{objective}.runtime.micro_batch=auto. Leave one out."
        )
    rows = runtime.rows or 1
    if block.batch_size % (rows * runtime.world_size):
        raise UserError(
            f"{objective}.batch_size={block.batch_size}: this is not a multiple of {runtime.world_size} processes × "
            f"{rows} rows of a micro-batch. Change one of them."
        )
