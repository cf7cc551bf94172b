"""Refuse arguments of TRL that nothing reads under the other settings of a block.

Such an argument would have no effect, but the fingerprint of the node would change, so that the same computation ran
again. Tests compare every rule with TRL and transformers themselves."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.config.blocks.training import DPO, SFT, Training
from stages.config.choices import LOSS_TYPES, SIMPO, Checkpointing, Sharding
from stages.config.errors import UserError, suggest
from stages.config.installation import read_beside

SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")  # losses that read label_smoothing
DIVERGING = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")  # f_divergence_type
ADAM = r"(paged_)?adamw_.*|(paged_)?ademamix.*|apollo_.*|schedule_free_(radam|adamw)|stable_adamw"
LION = r"(paged_)?lion_.*"
PROJECTED = r"(galore|apollo)_.*"  # optimizers with low-rank projections
UNDECAYED = rf"{PROJECTED}|(ada)?lomo"  # transformers does not pass weight decay to them
WARMED_UP = r"schedule_free_(adamw|sgd)"  # optimizers that warm up under any schedule
OPTIMIZER_OPTIONS: dict[str, str] = read_beside(__file__)["optimizer_options"]
SCHEDULE_OPTIONS: dict[str, str] = read_beside(__file__)["schedule_options"]
NEVER_READ: dict[str, str] = read_beside(__file__)["never_read"]


@dataclass(frozen=True)
class Rule:
    """The rule that `arguments` are read only if `is_read` holds for the block. `setting` is the setting that decides
    it, and `instead` a setting with which the arguments are read."""

    arguments: str
    setting: str
    is_read: Callable[[Training], bool]
    instead: str = ""


def by_loss(losses: Sequence[str]) -> Callable[[Training], bool]:
    return lambda block: isinstance(block, DPO) and not {*losses}.isdisjoint(weighted_losses(block))


def by_optimizer(pattern: str) -> Callable[[Training], bool]:
    return lambda block: re.fullmatch(pattern, optimizer(block)) is not None


def never(_: Training) -> bool:
    return False


STAGE = "stage={name}"
LOSSES = "dpo.loss_type=[{losses}]"
OPTIMIZER, ADAMW = "{name}.trainer.optim={optimizer}", "{name}.trainer.optim=adamw_torch_fused"
RULES = (
    Rule("label_smoothing", LOSSES, by_loss(SMOOTHED), "robust"),
    Rule("discopop_tau", LOSSES, by_loss(["discopop"]), "discopop"),
    Rule("f_divergence_type", LOSSES, by_loss(DIVERGING), "sigmoid"),
    Rule("ld_alpha", LOSSES, by_loss([loss for loss in LOSS_TYPES if loss != "sft"]), "sigmoid"),
    Rule("use_weighting router_aux_loss_coef", LOSSES, lambda block: SIMPO not in losses(block), "sigmoid"),
    Rule(
        "f_alpha_divergence_coef",
        "dpo.trainer.f_divergence_type={divergence}",
        lambda block: block.trainer.get("f_divergence_type") == "alpha_divergence",
        "dpo.trainer.f_divergence_type=alpha_divergence",
    ),
    Rule("label_smoothing_factor", STAGE, lambda block: isinstance(block, SFT)),
    Rule(
        "label_smoothing_factor",
        "sft.trainer.loss_type=dft",
        lambda block: block.trainer.get("loss_type") != "dft",
        "sft.trainer.loss_type=nll",
    ),
    Rule("adam_beta1 adam_beta2", OPTIMIZER, by_optimizer(f"{ADAM}|{LION}"), ADAMW),
    Rule("adam_epsilon", OPTIMIZER, by_optimizer(ADAM), ADAMW),
    Rule("weight_decay", OPTIMIZER, by_optimizer(f"(?!({UNDECAYED})$).*"), ADAMW),
    Rule("optim_target_modules", OPTIMIZER, by_optimizer(PROJECTED), "{name}.trainer.optim=galore_adamw"),
    Rule(
        "warmup_steps",
        "{name}.trainer.lr_scheduler_type={schedule}",
        lambda block: schedule(block) != "constant" or by_optimizer(WARMED_UP)(block),
        "{name}.trainer.lr_scheduler_type=constant_with_warmup",
    ),
    Rule(
        "activation_checkpointing_kwargs gradient_checkpointing_kwargs",
        "{name}.runtime.gradient_checkpointing={block.runtime.gradient_checkpointing}",
        lambda block: block.runtime.gradient_checkpointing in (Checkpointing.auto, Checkpointing.full),
        "{name}.runtime.gradient_checkpointing=full",
    ),
    Rule(
        "dataloader_in_order dataloader_multiprocessing_context dataloader_persistent_workers "
        "dataloader_prefetch_factor",
        "{name}.runtime.loader_workers=0",
        lambda block: block.runtime.loader_workers > 0,
        "{name}.runtime.loader_workers=2",
    ),
    Rule(
        "dataloader_pin_memory torch_empty_cache_steps",
        "{name}.runtime.device=cpu",
        lambda block: block.runtime.device != "cpu",
        "{name}.runtime.device=cuda",
    ),
    Rule(
        "ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph",
        "launch.sharding={block.runtime.sharding}",
        lambda block: block.runtime.sharding is Sharding.none,
        "launch=ddp",
    ),
    Rule(
        "ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout "
        "log_level_replica",
        "launch.processes=1",
        lambda block: block.runtime.world_size > 1,
        "launch=ddp",
    ),
    Rule("log_on_each_node", "launch.nodes=1", lambda block: block.runtime.nodes > 1, "launch.nodes=2"),
    *(Rule(names, STAGE, never, instead) for instead, names in NEVER_READ.items()),
)


def validate_readers(name: str, block: Training, unchanging: Mapping[str, Sequence[Any]]) -> None:
    """Raise UserError for the first argument of `NAME.trainer`, or option inside one, that nothing reads.

    Args:
        unchanging: the values of each argument that are allowed without a reader: TRL's default, then that of `conf/`.
    """
    words = {"name": name, "block": block, "optimizer": optimizer(block), "schedule": schedule(block)}
    words |= {"losses": ",".join(losses(block)), "divergence": block.trainer.get("f_divergence_type", "reverse_kl")}
    for key, value in block.trainer.items():
        rule = next((rule for rule in RULES if key in rule.arguments.split() and not rule.is_read(block)), None)
        if rule and value not in unchanging[key]:
            argument = f"{name}.trainer.{key}"
            instead = replace_main_loss(losses(block), rule.instead) if rule.setting == LOSSES else rule.instead
            ways = [instead.format(**words)] if instead else []
            ways += [f"{argument}={'null' if default is None else default}" for default in unchanging[key][:1]]
            raise UserError(
                f"{argument}={value}: nothing reads this argument under {rule.setting.format(**words)}. "
                + (f"Type {', or '.join(ways)}." if ways else "Leave the argument out.")
            )
    validate_options(f"{name}.trainer.optim_args", optimizer_options(block), OPTIMIZER_OPTIONS, optimizer(block))
    schedule_options = block.trainer.get("lr_scheduler_kwargs")
    if isinstance(schedule_options, Mapping):
        validate_options(f"{name}.trainer.lr_scheduler_kwargs", schedule_options, SCHEDULE_OPTIONS, schedule(block))


def validate_options(key: str, option_names: Iterable[str], accepted_options: Mapping[str, str], reader: str) -> None:
    """Raise UserError for the first option that `reader`, an optimizer or a schedule, does not read."""
    names = next((names.split() for pattern, names in accepted_options.items() if re.fullmatch(pattern, reader)), [])
    for option in option_names:
        if option not in names:
            way_out = suggest(option, names) if names else " Leave it out."
            raise UserError(f"{key}: {reader} does not read {option}.{way_out}")


def optimizer_options(block: Training) -> list[str]:
    """Return the names in `optim_args`: `momentum` and `nesterov` for `momentum=0.9,nesterov=true`."""
    parts = str(block.trainer.get("optim_args") or "").replace(" ", "").split(",")
    return [part.partition("=")[0] for part in parts if part]


def optimizer(block: Training) -> str:
    return str(block.trainer.get("optim", "adamw_torch_fused"))


def schedule(block: Training) -> str:
    return str(block.trainer.get("lr_scheduler_type", "linear"))


def losses(block: Training) -> list[str]:
    return block.loss_type if isinstance(block, DPO) else []


def weighted_losses(block: DPO) -> list[str]:
    """Return the losses that have a weight other than 0."""
    weights = block.loss_weights or [1.0] * len(block.loss_type)
    return [loss for loss, weight in zip(block.loss_type, weights, strict=True) if weight]


def replace_main_loss(losses: Sequence[str], other: str) -> str:
    """Return the setting that replaces the main loss of a mixture by `other`. The number of losses stays the same."""
    main = next((i for i, loss in enumerate(losses) if loss != "sft"), 0)
    return f"dpo.loss_type=[{','.join([*losses[:main], other, *losses[main + 1 :]])}]"
