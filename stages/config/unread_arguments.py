"""Refuse arguments of TRL that nothing reads under the other settings of a block.

Such an argument would have no effect, but the fingerprint of the node would change, so that the same computation ran
again. Tests compare every rule with TRL and transformers themselves."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.config.blocks.training import DPO, SFT, Training
from stages.config.choices import LOSS_TYPES, Checkpointing, Sharding
from stages.config.errors import UserError, suggest
from stages.config.installation import read_beside

SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")  # losses that read label_smoothing
DIVERGING = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")  # f_divergence_type
ADAM = r"(paged_)?adamw_.*|(paged_)?ademamix.*|apollo_.*|schedule_free_(radam|adamw)|stable_adamw"
LION = r"(paged_)?lion_.*"
PROJECTED = r"(galore|apollo)_.*"  # optimizers with low-rank projections
UNDECAYED = rf"{PROJECTED}|(ada)?lomo"  # transformers does not pass weight decay to them
WARMED_UP = r"schedule_free_(adamw|sgd)"  # optimizers that warm up under any schedule
RECOMPUTING = (Checkpointing.auto, Checkpointing.full)  # whole layers
TEXTS = read_beside(__file__)
OPTIMIZER_OPTIONS: dict[str, str] = TEXTS["optimizer_options"]
SCHEDULE_OPTIONS: dict[str, str] = TEXTS["schedule_options"]


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


STAGE, LOSSES = "stage={name}", "dpo.loss_type=[{losses}]"
# Whether arguments are read, by the name of their rule in the YAML file
IS_READ: dict[str, Callable[[Training], bool]] = {
    "smoothed losses": by_loss(SMOOTHED),
    "discopop": by_loss(["discopop"]),
    "diverging losses": by_loss(DIVERGING),
    "losses of preferences": by_loss([loss for loss in LOSS_TYPES if loss != "sft"]),
    "alpha divergence": lambda block: block.trainer.get("f_divergence_type") == "alpha_divergence",
    "SFT": lambda block: isinstance(block, SFT),
    "other losses than dft": lambda block: block.trainer.get("loss_type") != "dft",
    "Adam and Lion": by_optimizer(f"{ADAM}|{LION}"),
    "Adam": by_optimizer(ADAM),
    "decayed weights": by_optimizer(f"(?!({UNDECAYED})$).*"),
    "projected gradients": by_optimizer(PROJECTED),
    "warm-up": lambda block: schedule(block) != "constant" or by_optimizer(WARMED_UP)(block),
    "recomputed layers": lambda block: block.runtime.gradient_checkpointing in RECOMPUTING,
    "loader workers": lambda block: block.runtime.loader_workers > 0,
    "GPU": lambda block: block.runtime.device != "cpu",
    "whole weights": lambda block: block.runtime.sharding is Sharding.none,
    "several processes": lambda block: block.runtime.world_size > 1,
    "several nodes": lambda block: block.runtime.nodes > 1,
}
RULES = (
    *(Rule(is_read=IS_READ[name], **texts) for name, texts in TEXTS["rules"].items()),
    *(Rule(names, STAGE, lambda block: False, instead) for instead, names in TEXTS["never_read"].items()),
)


def validate_readers(name: str, block: Training, unchanging: Mapping[str, Sequence[Any]]) -> None:
    """Raise UserError for the first argument of `NAME.trainer`, or option inside one, that nothing reads.
    `unchanging`: the values of an argument that are allowed without a reader: TRL's default, then that of `conf/`."""
    words = {"name": name, "block": block, "optimizer": optimizer(block), "schedule": schedule(block)}
    words |= {"losses": ",".join(losses(block)), "divergence": block.trainer.get("f_divergence_type", "reverse_kl")}
    for key, value in block.trainer.items():
        rule = next((rule for rule in RULES if key in rule.arguments.split() and not rule.is_read(block)), None)
        if rule and value not in unchanging[key]:
            argument = f"{name}.trainer.{key}"
            instead = replace_main_loss(losses(block), rule.instead) if rule.setting == LOSSES else rule.instead
            ways = [instead.format(**words)] if instead else []
            ways += [f"{argument}={'null' if default is None else default}" for default in unchanging[key][:1]]
            way_out = f"Type {', or '.join(ways)}" if ways else "Leave the argument out"
            problem = f"nothing reads this argument under {rule.setting.format(**words)}"
            raise UserError(f"{argument}={value}: {problem}. {way_out}.")
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
