"""Explain errors that the user can mend in one line, with the key, the file and the nearest valid name."""

import errno
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stages.cli import spelling
from stages.config.blocks.arguments import TrainerArguments
from stages.config.blocks.training import Training
from stages.config.errors import (
    SYNONYMS,
    UserError,
    causes,
    full_disk_message,
    nearest,
    suggest,
    visible,
)
from stages.config.installation import read_beside
from stages.config.limits import COMPUTED
from stages.config.schema import CONF, OPTIONS, Config
from stages.config.trainers import elsewhere_message
from stages.hardware import process

OF_HYDRA = {
    "hydra.mode",
    *(f"hydra.sweeper.{key}" for key in ("params", "n_trials", "n_jobs", "direction")),
}
PLAIN_WORDS: dict[str, str] = read_beside(__file__)  # of OmegaConf's messages, as patterns
MENDABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
MENDABLE |= {errno.ENAMETOOLONG, errno.ELOOP}


def explain(error: BaseException) -> str | None:
    """Return one line for an error that the user can mend; None for a bug, which needs its traceback."""
    line = error_message(error)
    return None if line is None else visible(line)


@contextmanager
def explained() -> Iterator[None]:
    """End the process with one line if the block raises an error that the user can mend."""
    try:
        yield
    except Exception as error:
        line = explain(error)
        if any(
            re.fullmatch("""\\+*stage=["']?gate["']?""", word)
            for word in process.read_typed_arguments()
        ):
            sys.stderr.write(f"error: {line}\n" if line else traceback.format_exc())
            sys.exit(2)  # 1 is for a worse policy
        if line is None:
            raise
        sys.exit(f"error: {line}")


def error_message(error: BaseException) -> str | None:
    if line := full_disk_message(error):
        return line
    chain = list(causes(error))
    place = next((prefix for e in chain if (prefix := place_prefix(e))), "")
    for e in chain:
        if isinstance(e, UserError):
            return str(e)
        if isinstance(e, MissingConfigException):
            return missing_group_message(e)
        if isinstance(e, OverrideParseException):
            return spelling.unreadable_message(e)
        if ambiguous := re.match(r"Ambiguous value for argument '(.+)'", str(e)):
            return spelling.several_values_message(ambiguous[1])
        if type(e).__name__ == "OutOfMemoryError":
            way_out = "Lower token_budget or batch_size in the runtime of this stage, or set its runtime.device=cpu"
            return f"{str(e).partition('. ')[0]}. {way_out}. No node is lost."
    config_errors = [e for e in reversed(chain) if isinstance(e, OmegaConfBaseException)]
    if config_errors:  # the innermost error with a key says most
        return setting_message(
            next((e for e in config_errors if e.full_key), config_errors[0]), place
        )
    name = str(getattr(error, "filename", ""))
    if isinstance(error, PermissionError) and os.path.exists(name) and not os.access(name, os.R_OK):
        return f"{error.filename}: {error.strerror}. Its owner can let others read it: chmod -R go+rX FOLDER."
    # A folder may not be made because something is missing, as under /proc. Any other missing file may be a bug.
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, OSError) and (error.errno in MENDABLE or frames[-1].name == "mkdir"):
        return f"{error.filename}: {error.strerror}. No node is lost. To use another store, set outputs=FOLDER."
    return " ".join(str(error).split()) if isinstance(error, HydraException) else None


def place_prefix(error: BaseException) -> str:
    """Return the file or override that Hydra was merging, as `"recipes/x.yaml: "` or `"dpo.beta=x: "`, else ''."""
    if not isinstance(error, ConfigCompositionException):
        return ""
    if override := re.match(r"Error merging override (.+)", str(error)):
        return f"{override[1].lstrip('+')}: "
    if override := re.match(r"Could not override '(.+\W.+)'", str(error)):
        return f"{override[1]}: "
    merged_file = re.match(r"In '(\w+)/(.+?)': ", str(error))
    return f"{option_file(*merged_file.groups())}: " if merged_file else ""


def option_file(group: str, name: str) -> str:
    """Return the path that messages use for the file of a group's option."""
    folder = "recipes" if group == "recipe" else f"conf/{group}"
    return name if group == "recipe" and name.endswith(".yaml") else f"{folder}/{name}.yaml"


def setting_message(error: OmegaConfBaseException, where: str = "") -> str:
    """Return the message for an unknown key, a wrong type or a missing value, after `where`: the file or override."""
    key = str(error.full_key or error.key or "")
    kind = error.object_type
    if is_dataclass(kind) and error.key is not None and "not in" in str(error):
        place = "" if where.startswith(key) else where
        return place + unknown_setting_message(key, kind)  # type: ignore[arg-type]  # a class, as all types are
    message = str(error).splitlines()[0].removesuffix(".")
    for pattern, plainer in PLAIN_WORDS.items():
        message = re.sub(pattern, plainer, message)
    form = spelling.correct_form(key, where.partition("=")[2].removesuffix(": "))
    # in a sweep OmegaConf does not name the key
    if not key and (expression := re.match(r"\$\{.*\}", message)):
        key = next(
            (typed for typed in process.read_typed_arguments() if expression[0] in typed), ""
        )
    head = "" if not key or key in message or key.partition("[")[0] in where else f"{key}: "
    return f"{where}{head}{message}.{form}"


def unknown_setting_message(key: str, kind: type) -> str:
    """Return the message for a key that its block does not have, with the nearest name or the blocks that have it."""
    name, field_names = key.rpartition(".")[2], known_keys(kind)
    if key == "recipe":
        return "a recipe in the folder of --config-dir has no name here. Type its path: recipe=FILE.yaml."
    if corrected := corrected_top_level(key):
        return f"{key} is not a setting. Did you mean {' '.join(corrected)}?"
    if issubclass(kind, TrainerArguments):
        block = key.partition(".")[0]
        message = elsewhere_message(block, name)
        if message:
            return f"{key}: {message}"
        more = f" Other arguments of TRL go into {block}.trainer.extra."
        return f"{key} is not a setting.{suggest(name, field_names)}{more}"
    if issubclass(kind, Training) and name in known_keys(type(kind().trainer)):
        return (
            f"{key} is not a setting. Did you mean {f'{key.removesuffix(name)}trainer.{name}'!r}?"
        )
    names = (name, SYNONYMS.get(name))
    elsewhere = [other for other in spelling.setting_types() if other.rpartition(".")[2] in names]
    if line := other_option_message(key, kind):
        return line
    block = key.rpartition(".")[0]
    if name == "name" and (CONF / block).is_dir():
        return f"{key} is not a setting. Type the option of this group: {block}=NAME."
    if elsewhere and SYNONYMS.get(name) not in field_names and not nearest(name, field_names, 0.8):
        return f"{key} is not a setting. Did you mean {' or '.join(elsewhere)}?"
    return f"{key} is not a setting.{suggest(name, field_names)}"


def other_option_message(key: str, kind: type) -> str | None:
    """Return the message for a key that other options of the group have; None if no option has it."""
    for group, options in OPTIONS.items():
        chosen = next((option for option, each in options.items() if each is kind), None)
        name = key.rpartition(".")[2]
        if chosen == name:
            block = key.removesuffix(f".{name}")
            return f"{key}: the keys of {group}={name} are in {block} itself. Leave {name} out of the key."
        having = [option for option in options if name in known_keys(options[option])]
        if chosen and having:
            ways = " or ".join(f"{group}={option}" for option in having)
            return (
                f"{key}: {group}={chosen} does not have this key. Add {ways}, or leave the key out."
            )
    return None


def known_keys(kind: type) -> list[str]:
    """Return the keys of a block that can be typed."""
    return [key.name for key in fields(kind) if COMPUTED not in key.metadata]


def corrected_top_level(key: str) -> list[str]:
    """Return the typed arguments with the right group or block: `label=judge` for `labels=judge`."""
    names = [
        "recipe",
        *(f.name for f in fields(Config)),
        *(path.name for path in CONF.iterdir() if path.is_dir()),
    ]
    if key in names or "." in key or not (name := nearest(key, names, 0.8)):
        return []
    typed = [argument.lstrip("+") for argument in process.read_typed_arguments()]
    return [
        shlex.quote(name + argument.removeprefix(key))
        for argument in typed
        if re.match(rf"{key}\b", argument)
    ]


def missing_group_message(error: MissingConfigException) -> str:
    """Return the message for an option of a group that does not exist, or for a recipe that cannot be read."""
    missing = str(error.missing_cfg_file or "")
    group, _, name = (
        missing.rpartition("/")
        if missing.startswith(("eval/", "hydra/"))
        else missing.partition("/")
    )
    if not group:
        return str(error).splitlines()[0]
    if group == "recipe" and (path := spelling.recipe_files(name).get(name)) and path.is_file():
        if place := yaml_problem(path):
            return f"{option_file(group, name)} is not valid YAML{place}. Correct the file."
        keys = ", ".join(forbidden_keys(OmegaConf.load(path)))
        return f"{option_file(group, name)} sets {keys}. It may only set {', '.join(sorted(OF_HYDRA))} of Hydra."
    path_key = (
        f" For a folder or a hub id, type {group}.path={name}."
        if group in ("model", "label")
        else ""
    )
    # Hydra has no options where several are typed: tracker=[wandb,mlflow]
    options = error.options or [path.stem for path in (CONF / group).glob("*.yaml")]
    if group == "recipe":
        options = [*spelling.recipe_files()]
    return f"{group}={name} does not exist.{suggest(name, options)}{path_key}"


def forbidden_keys(recipe: Any) -> list[str]:
    """Return the keys of Hydra that a recipe sets but must not: some name code, which Hydra imports even to plan."""
    hydra = (recipe or {}).get("hydra") or {}
    keys = [f"hydra.{key}" for key in hydra if key != "sweeper"]
    keys += [f"hydra.sweeper.{key}" for key in hydra.get("sweeper") or {}]
    return [key for key in keys if key not in OF_HYDRA]


def yaml_problem(path: Path) -> str:
    """Return where and why a file is not a YAML mapping, or '' if it is one."""
    try:
        keys = OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        return (
            f": line {error.problem_mark.line + 1}, {error.problem}" if error.problem_mark else ""
        )
    except (ValueError, OSError) as error:
        return f": {error}"
    return "" if isinstance(keys, DictConfig) and keys else ": it has no KEY: VALUE"
