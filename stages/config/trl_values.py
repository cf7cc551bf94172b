"""Check the values of TRL's arguments: their types, words and ranges, and the packages that an optimizer needs.

torch, transformers and TRL would only refuse a wrong value when training starts, hours later perhaps."""

import math
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from stages.config.errors import UserError, require_known
from stages.config.installation import read_beside
from stages.config.limits import Limit

TYPES: dict[str, tuple[type, ...]] = {kind.__name__: (kind,) for kind in (int, bool, str, dict, list)}
TYPES |= {"float": (float, int), "None": (type(None),)}
TABLES = read_beside(__file__)
# Words of arguments whose type is only text. The words of enumerations are read from the source of transformers.
WORDS: dict[str, list[str]] = {argument: words.split() for argument, words in TABLES["words"].items()}
RANGES = {argument: Limit(**limit) for argument, limit in TABLES["ranges"].items()}
OTHER_NUMBERS = Limit(0, "must be a finite number, 0 or more")
PACKAGES: dict[str, str] = TABLES["packages"]  # by pattern of the optimizer that needs it
SCHEDULES: dict[str, list[str]] = TABLES["schedules"]  # with the options of which each needs one
TEXTS = ("warmup_type", "decay_type")  # options of schedules that are words; all others are numbers
# Keys of arguments that are mappings. torch would only refuse other keys in the first backward pass.
OPTIONS = {argument: words.split() for argument, words in TABLES["options"].items()}
SCHEDULE_OPTIONS = {schedule: words.split() for schedule, words in TABLES["schedule_options"].items()}
# Schedules that follow TRL's own evaluations, which a stage turns off.
METRIC_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


def validate_values(
    name: str, arguments: Mapping[str, Any], annotations: Mapping[str, str], words: Mapping[str, list[str]]
) -> None:
    """Raise UserError for the first argument in `name` (`dpo.trainer`) whose value cannot work. `annotations`: the
    type of each argument as TRL's source writes it (`float | None`). `words`: of each enumeration in these types."""
    for key, value in arguments.items():
        kinds = annotations[key].replace(" ", "").split("|")
        accepted = WORDS.get(key) or next((words[kind] for kind in kinds if kind in words), ())
        if not any(has_type(value, "str" if kind in words else kind) for kind in kinds):
            raise UserError(f"{name}.{key}={value}: the value must be of the type {annotations[key]}.")
        if accepted and isinstance(value, str):
            require_known(f"{name}.{key}", [value], accepted)
        if key in OPTIONS and isinstance(value, Mapping):
            require_known(f"{name}.{key}", value, OPTIONS[key])
        limit = RANGES.get(key, OTHER_NUMBERS)
        if isinstance(value, int | float) and not limit.holds(value):
            raise UserError(f"{name}.{key}={value}: the value {limit.requirement}.")
    require_optimizer(name, str(arguments.get("optim")))
    validate_schedule(name, str(arguments.get("lr_scheduler_type")), arguments.get("lr_scheduler_kwargs") or {})


def has_type(value: Any, kind: str) -> bool:
    """Return whether a value has a type that is written as in source code: `float`, `list[str]`."""
    types = TYPES.get(kind.partition("[")[0], ())
    return isinstance(value, types) and (not isinstance(value, bool) or bool in types)


def require_optimizer(name: str, chosen: str) -> None:
    package = next((package for pattern, package in reversed(PACKAGES.items()) if re.fullmatch(pattern, chosen)), None)
    if package and find_spec(package) is None:
        raise UserError(f"{name}.optim={chosen}: the package {package} is not installed. Install it, or name another.")


def validate_schedule(name: str, chosen: str, options: Any) -> None:
    if not isinstance(options, Mapping):
        raise UserError(f"{name}.lr_scheduler_kwargs={options}: the value must be a mapping, as {{power: 2}}.")
    if chosen in METRIC_SCHEDULES:
        problem = "this schedule needs TRL's evaluations, which the stage replaces by its own"
        raise UserError(f"{name}.lr_scheduler_type={chosen}: {problem}. Set cosine, linear or constant_with_warmup.")
    require_known(f"{name}.lr_scheduler_kwargs", options, SCHEDULE_OPTIONS.get(chosen, [*options]))
    for option, value in options.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if option not in TEXTS and not number:
            raise UserError(f"{name}.lr_scheduler_kwargs.{option}={value}: the value must be a finite number.")
    if (needed := SCHEDULES.get(chosen, ())) and not {*needed} & {*options}:
        problem = f"{name}.lr_scheduler_type={chosen}: this schedule needs {' or '.join(needed)}"
        example = f"{name}.lr_scheduler_kwargs={{{needed[-1]}: {'0.1' if 'rate' in needed[-1] else '10'}}}"
        raise UserError(f"{problem}. For example, type {example}.")
