"""Check the settings that go to TRL's trainers: losses, batches, and the types, words and ranges of TRL's arguments.

TRL is not imported. It would only refuse a wrong value when training starts, hours later perhaps."""

import ast
import contextlib
import math
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.config.blocks.training import DPO, KTO, OBJECTIVES, Training
from stages.config.choices import SIMPO, Checkpointing, Forward
from stages.config.errors import UserError, require_known, suggest
from stages.config.installation import install_command, read_beside
from stages.config.limits import Limit

TABLES = read_beside(__file__)
READ_BY: dict[str, list[str]] = {
    name: losses.split() for name, losses in TABLES["read_by_losses"].items()
}
OF_ANY_DIVERGENCE = (*READ_BY["f_divergence_type"], "sft")
SET_ELSEWHERE: dict[str, str] = {
    name: key for key, names in TABLES["set_elsewhere"].items() for name in names.split()
}
SET_BY_STAGE = {*TABLES["set_by_stage"].split()}
SET_BY_LAUNCH, COMPILED = TABLES["set_by_launch"].split(), TABLES["compiled"].split()
OF_MARGINS = TABLES["of_margins"].split()
MISTAKES: dict[str, str] = TABLES["mistakes_of_losses"]
TYPES: dict[str, tuple[type, ...]] = {
    kind.__name__: (kind,) for kind in (int, bool, str, dict, list)
}
TYPES |= {"float": (float, int), "None": (type(None),)}
# Words of arguments whose type is only text. The words of enumerations are read from the source of transformers.
WORDS: dict[str, list[str]] = {
    argument: words.split() for argument, words in TABLES["words"].items()
}
RANGES = {argument: Limit(**limit) for argument, limit in TABLES["ranges"].items()}
OTHER_NUMBERS = Limit(0, "must be a finite number, 0 or more")
PACKAGES: dict[str, str] = TABLES["packages"]  # by pattern of the optimizer that needs it
SCHEDULES: dict[str, list[str]] = TABLES["schedules"]  # with the options of which each needs one
TEXTS = ("warmup_type", "decay_type")  # options of schedules that are words; all others are numbers
# Keys of arguments that are mappings. torch would only refuse other keys in the first backward pass.
OPTIONS = {argument: words.split() for argument, words in TABLES["options"].items()}
SCHEDULE_OPTIONS = {
    schedule: words.split() for schedule, words in TABLES["schedule_options"].items()
}
# Schedules that follow TRL's own evaluations, which a stage turns off.
METRIC_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


def validate_trainer(name: str, block: Training) -> None:
    """Raise UserError for the first setting of an objective that its trainer cannot use."""
    validate_micro_batch(name, block)
    if block.runtime.gradient_checkpointing not in [Checkpointing.auto, *block.checkpointings]:
        problem = "this does not work with adapters or under ZeRO-3"
        raise UserError(
            f"{name}.runtime.gradient_checkpointing=selective: {problem}. Set none or full."
        )
    validate_trainer_keys(name, block)
    if compile_keys := [key for key in COMPILED if block.trainer.get(key)]:
        key = f"{name}.trainer.{compile_keys[0]}"
        raise UserError(
            f"{key}: torch would compile again for batches of another shape. Leave this argument out."
        )
    if block.trainer.get("use_liger_kernel") and (
        block.runtime.device == "cpu" or find_spec("liger_kernel") is None
    ):
        raise UserError(
            f"{name}.trainer.use_liger_kernel: this needs a CUDA device and {install_command('liger')}."
        )
    if isinstance(block, DPO):
        validate_losses(block)
    if isinstance(block, KTO) and (block.desirable_weight, block.undesirable_weight) == (0, 0):
        raise UserError(
            "kto.desirable_weight=0: both weights are 0, so nothing is learnt. Leave them out."
        )


def validate_losses(cfg: DPO) -> None:
    """Refuse combinations of DPO's losses, weights and divergences that TRL does not support."""
    losses, weights, options = cfg.loss_type, cfg.loss_weights, cfg.trainer
    unread = (
        {"use_weighting", "router_aux_loss_coef", "ld_alpha"} & options.keys()
        if cfg.reference_free
        else set()
    )
    divergence = options.get("f_divergence_type", "reverse_kl")
    argument = unread_argument(cfg)
    undiverging = (
        [loss for loss in losses if loss not in OF_ANY_DIVERGENCE]
        if divergence != "reverse_kl"
        else []
    )
    mistakes = {
        "no loss": not losses,
        "number of weights": weights is not None and len(weights) != len(losses),
        "no weight": weights is not None and not any(weights),
        "simpo and others": SIMPO in losses and len(losses) > 1,
        "unread by simpo": unread,
        "divergence": undiverging,
        "alpha": "f_alpha_divergence_coef" in options and divergence != "alpha_divergence",
        "first difference": cfg.first_difference
        and (
            {*losses}.difference(OF_MARGINS) or {"ld_alpha", "f_divergence_type"} & options.keys()
        ),
        "unread by losses": argument,
        "exo_pair": "exo_pair" in losses and not options.get("label_smoothing"),
        "weighting": options.get("use_weighting")
        and {"aot", "aot_unpaired", "hinge", "sft"} & {*losses},
    }
    if mistake := next((name for name, is_made in mistakes.items() if is_made), None):
        numbers = {
            "losses": losses,
            "weights": weights,
            "of_weights": len(weights or ()),
            "of_losses": len(losses),
        }
        words = {"argument": argument, "readers": ", ".join(READ_BY.get(str(argument), ()))}
        words |= {"of_margins": ", ".join(OF_MARGINS), "diverging": ", ".join(OF_ANY_DIVERGENCE)}
        words |= {
            "unread": min(unread, default=""),
            "divergence": divergence,
            "loss": "".join(undiverging[:1]),
        }
        raise UserError(MISTAKES[mistake].format(**numbers, **words))


def unread_argument(cfg: DPO) -> str | None:
    """Return the first argument of `dpo.trainer` that no loss with a weight reads; None if there is none."""
    weights = cfg.loss_weights or [1.0] * len(cfg.loss_type)
    losses = {loss for loss, weight in zip(cfg.loss_type, weights, strict=False) if weight}
    # TRL's defaults
    changed = [name for name in READ_BY if cfg.trainer.get(name) not in (None, 0, "reverse_kl")]
    return next((name for name in changed if losses.isdisjoint(READ_BY[name])), None)


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


def validate_trainer_keys(name: str, block: Training) -> None:
    """Check that the keys of `trainer` are arguments of TRL, that no other setting sets them, and that they fit."""
    types = argument_types(name) if block.trainer else {}
    elsewhere = SET_ELSEWHERE | OBJECTIVES[name].typed
    for key in block.trainer:
        if key in SET_BY_STAGE:
            raise UserError(
                f"{name}.trainer.{key}: only the {name} stage sets this argument. Leave it out."
            )
        if key in SET_BY_LAUNCH:
            raise UserError(
                f"{name}.trainer.{key}: launch=ddp, fsdp or zero3 sets this argument. Leave it out."
            )
        if key in elsewhere:
            raise UserError(
                f"{name}.trainer.{key}: another setting does this. Set {name}.{elsewhere[key]} instead."
            )
        if key not in types:
            raise UserError(
                f"{name}.trainer.{key}: TRL's trainer does not have this argument.{suggest(key, types)}"
            )
    packed = (
        getattr(block, "packing", True) and getattr(block, "forward", None) is not Forward.padded
    )
    if "neftune_noise_alpha" in block.trainer and packed:
        raise UserError(
            f"{name}.trainer.neftune_noise_alpha: long packed rows get too little noise. Leave it out."
        )
    if block.trainer.get("loss_type") == "dft" and block.trainer.get("label_smoothing_factor"):
        raise UserError(
            f"{name}.trainer.label_smoothing_factor: the loss dft does not read this. Leave it out."
        )
    if block.trainer.get("dataloader_persistent_workers") and not block.runtime.loader_workers:
        raise UserError(
            f"{name}.trainer.dataloader_persistent_workers: set {name}.runtime.loader_workers too."
        )
    validate_values(
        f"{name}.trainer", block.trainer, types, enumerations() if block.trainer else {}
    )


def allowed_arguments(name: str) -> set[str]:
    """Return the names of all arguments that `NAME.trainer` accepts."""
    elsewhere = {*SET_BY_STAGE, *SET_BY_LAUNCH, *SET_ELSEWHERE, *OBJECTIVES[name].typed}
    return argument_types(name).keys() - elsewhere


@cache
def argument_types(name: str) -> dict[str, str]:
    """Return the types of an objective's arguments in its TRL configuration, as its source writes them."""
    unread = () if name == "sft" else ("label_smoothing_factor",)
    return {
        key: ast.unparse(field.annotation)
        for key, field in argument_fields(name).items()
        if key not in unread
    }


@cache
def argument_defaults(name: str) -> dict[str, Any]:
    """Return the defaults of an objective's TRL configuration, without those that the source computes."""
    values = {}
    for key, field in argument_fields(name).items():
        if isinstance(field.value, ast.Call):  # a call of dataclasses.field
            with contextlib.suppress(StopIteration, ValueError):
                values[key] = ast.literal_eval(
                    next(k.value for k in field.value.keywords if k.arg == "default")
                )
    return values


def argument_fields(name: str) -> dict[str, ast.AnnAssign]:
    """Return the fields of a TRL configuration, or of its `model`, from the source: an import takes seconds."""
    own = name if name == "model" else OBJECTIVES[name].trl.removesuffix("Config").lower()
    sources = [("trl", f"trainer/{own}_config.py")] if own else []
    if name != "model":
        base = [("trl", "trainer/base_config.py")] if own else []
        sources = [("transformers", "training_args.py"), *base, *sources]
    lines = [
        line for source in sources for definition in classes(*source) for line in definition.body
    ]
    fields = [
        line
        for line in lines
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    ]
    return {field.target.id: field for field in fields if isinstance(field.target, ast.Name)}


def enumerations() -> dict[str, list[str]]:
    """Return the words of every enumeration in transformers that can be the type of an argument."""
    words = {}
    for file in ("training_args.py", "trainer_utils.py"):
        for definition in classes("transformers", file):
            if [ast.unparse(base) for base in definition.bases] == ["ExplicitEnum"]:
                values = [line.value for line in definition.body if isinstance(line, ast.Assign)]
                words[definition.name] = [str(ast.literal_eval(value)) for value in values]
    return words


@cache
def classes(package: str, file: str) -> list[ast.ClassDef]:
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    source = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
    return [definition for definition in source.body if isinstance(definition, ast.ClassDef)]


def validate_values(
    name: str,
    arguments: Mapping[str, Any],
    annotations: Mapping[str, str],
    words: Mapping[str, list[str]],
) -> None:
    """Raise UserError for the first argument in `name` (`dpo.trainer`) whose value cannot work. `annotations`: the
    type of each argument as TRL's source writes it (`float | None`). `words`: of each enumeration in these types."""
    for key, value in arguments.items():
        kinds = annotations[key].replace(" ", "").split("|")
        accepted = WORDS.get(key) or next((words[kind] for kind in kinds if kind in words), ())
        if not any(has_type(value, "str" if kind in words else kind) for kind in kinds):
            raise UserError(
                f"{name}.{key}={value}: the value must be of the type {annotations[key]}."
            )
        if accepted and isinstance(value, str):
            require_known(f"{name}.{key}", [value], accepted)
        if key in OPTIONS and isinstance(value, Mapping):
            require_known(f"{name}.{key}", value, OPTIONS[key])
        limit = RANGES.get(key, OTHER_NUMBERS)
        if isinstance(value, int | float) and not limit.holds(value):
            raise UserError(f"{name}.{key}={value}: the value {limit.requirement}.")
    require_optimizer(name, str(arguments.get("optim")))
    validate_schedule(
        name, str(arguments.get("lr_scheduler_type")), arguments.get("lr_scheduler_kwargs") or {}
    )


def has_type(value: Any, kind: str) -> bool:
    """Return whether a value has a type that is written as in source code: `float`, `list[str]`."""
    types = TYPES.get(kind.partition("[")[0], ())
    return isinstance(value, types) and (not isinstance(value, bool) or bool in types)


def require_optimizer(name: str, chosen: str) -> None:
    package = next(
        (
            package
            for pattern, package in reversed(PACKAGES.items())
            if re.fullmatch(pattern, chosen)
        ),
        None,
    )
    if package and find_spec(package) is None:
        raise UserError(
            f"{name}.optim={chosen}: the package {package} is not installed. Install it, or name another."
        )


def validate_schedule(name: str, chosen: str, options: Any) -> None:
    if not isinstance(options, Mapping):
        raise UserError(
            f"{name}.lr_scheduler_kwargs={options}: the value must be a mapping, as {{power: 2}}."
        )
    if chosen in METRIC_SCHEDULES:
        problem = "this schedule needs TRL's evaluations, which the stage replaces by its own"
        raise UserError(
            f"{name}.lr_scheduler_type={chosen}: {problem}. Set cosine, linear or constant_with_warmup."
        )
    require_known(f"{name}.lr_scheduler_kwargs", options, SCHEDULE_OPTIONS.get(chosen, [*options]))
    for option, value in options.items():
        number = (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
        if option not in TEXTS and not number:
            raise UserError(
                f"{name}.lr_scheduler_kwargs.{option}={value}: the value must be a finite number."
            )
    if (needed := SCHEDULES.get(chosen, ())) and not {*needed} & {*options}:
        problem = f"{name}.lr_scheduler_type={chosen}: this schedule needs {' or '.join(needed)}"
        example = f"{name}.lr_scheduler_kwargs={{{needed[-1]}: {'0.1' if 'rate' in needed[-1] else '10'}}}"
        raise UserError(f"{problem}. For example, type {example}.")
