"""Which values TRL's arguments may have: of the type that its source says, of the words that it knows, and numbers
that torch, transformers and TRL can use. What these would refuse only when training starts is refused here."""

import math
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from stages.config.errors import UserError, require_known
from stages.config.limits import Limit

TYPES: dict[str, tuple[type, ...]] = {
    "float": (float, int),
    "int": (int,),
    "bool": (bool,),
    "str": (str,),
    "dict": (dict,),
    "list": (list,),
    "None": (type(None),),
}
# Words of arguments that are any text by their type. Others are enumerations, which are read from the source.
WORDS = {
    "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    "loss_type": ("nll", "dft"),
    "pad_to_multiple_of": ("auto",),
    "log_level": ("debug", "info", "warning", "error", "critical", "passive"),
    "debug": ("underflow_overflow", "tpu_metrics_debug"),
}
BETA = Limit(0, "must be from 0 to below 1", high=1, below=True)  # the memory of a running mean
COUNT = Limit(1, "must be at least 1")
RANGES = {
    "adam_beta1": BETA,
    "adam_beta2": BETA,
    "label_smoothing": Limit(0, "must be from 0 to below 0.5: half of all labels wrong say nothing", 0.5, below=True),
    "label_smoothing_factor": Limit(0, "must be from 0 to below 1", high=1, below=True),
    "ld_alpha": Limit(0, "must be from 0 to 1", high=1),
    "discopop_tau": Limit(0, "must be positive and finite", open=True),
    "f_alpha_divergence_coef": Limit(float("-inf"), "must be a finite number"),
    "torch_empty_cache_steps": COUNT,
    "dataloader_prefetch_factor": COUNT,
    "pad_to_multiple_of": COUNT,
    "ddp_timeout": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "eval_accumulation_steps": COUNT,
}
OTHER_NUMBERS = Limit(0, "must be a finite number, 0 or more")
# Optimizers that live in packages of their own.
PACKAGES = {
    r".*(8bit|lion|bnb|ademamix).*|paged_.*": "bitsandbytes",
    r"adamw_torch_[48]bit": "torchao",
    r"galore_.*": "galore_torch",
    r"apollo_.*": "apollo_torch",
    r".*lomo": "lomo_optim",
    r"grokadamw": "grokadamw",
    r"schedule_free_.*": "schedulefree",
    r"stable_adamw": "optimi",
    r"adamw_anyprecision": "torchdistx",
    r"adamw_torch_xla": "torch_xla",
    r"adamw_torch_npu_fused": "torch_npu",
}
# What some schedules cannot do without, among lr_scheduler_kwargs: any one of these.
SCHEDULES = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}
TEXTS = ("warmup_type", "decay_type")  # of a schedule's options; the others are numbers
# Keys of arguments that are mappings, where torch would refuse others only in the first backward.
OPTIONS = {
    "gradient_checkpointing_kwargs": (
        "use_reentrant",
        "preserve_rng_state",
        "determinism_check",
        "debug",
        "early_stop",
    )
}
METRIC_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


def validate_values(
    name: str, arguments: Mapping[str, Any], annotations: Mapping[str, str], words: Mapping[str, list[str]]
) -> None:
    """Raise UserError for the first argument of `name` (`dpo.trainer`) whose value cannot work.

    Args:
        annotations: the type of each argument, as TRL's source writes it.
        words: the words of each enumeration that such a type may name.
    """
    for key, value in arguments.items():
        kinds = annotations[key].replace(" ", "").split("|")
        accepted = WORDS.get(key) or next((words[kind] for kind in kinds if kind in words), ())
        if not any(has_type(value, "str" if kind in words else kind) for kind in kinds):
            raise UserError(f"{name}.{key}={value} must be {annotations[key]}.")
        if accepted and isinstance(value, str):
            require_known(f"{name}.{key}", [value], accepted)
        if key in OPTIONS and isinstance(value, Mapping):
            require_known(f"{name}.{key}", value, OPTIONS[key])
        limit = RANGES.get(key, OTHER_NUMBERS)
        if isinstance(value, int | float) and not limit.holds(value):
            raise UserError(f"{name}.{key} {limit.requirement}, got {value}.")
    require_optimizer(name, str(arguments.get("optim")))
    validate_schedule(name, str(arguments.get("lr_scheduler_type")), arguments.get("lr_scheduler_kwargs") or {})


def has_type(value: Any, kind: str) -> bool:
    """Whether a value is of a type as source writes it: `float`, `list[str]`."""
    types = TYPES.get(kind.partition("[")[0], ())
    return isinstance(value, types) and (not isinstance(value, bool) or bool in types)


def require_optimizer(name: str, chosen: str) -> None:
    package = next((package for pattern, package in reversed(PACKAGES.items()) if re.fullmatch(pattern, chosen)), None)
    if package and find_spec(package) is None:
        raise UserError(f"{name}.optim={chosen} needs the package {package}, which is not installed.")


def validate_schedule(name: str, chosen: str, options: Any) -> None:
    if not isinstance(options, Mapping):
        raise UserError(f"{name}.lr_scheduler_kwargs={options} must be a mapping: {{power: 2}}.")
    if chosen in METRIC_SCHEDULES:
        raise UserError(
            f"{name}.lr_scheduler_type={chosen} waits for evaluations of TRL's, and the stage makes its own: cosine, "
            "linear or constant_with_warmup."
        )
    for option, value in options.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if option not in TEXTS and not number:
            raise UserError(f"{name}.lr_scheduler_kwargs.{option}={value} must be a finite number.")
    needed = SCHEDULES.get(chosen, ())
    if needed and not set(needed) & set(options):
        raise UserError(
            f"{name}.lr_scheduler_type={chosen} needs {' or '.join(needed)}: "
            f"{name}.lr_scheduler_kwargs={{{needed[-1]}: {'0.1' if 'rate' in needed[-1] else '10'}}}"
        )
