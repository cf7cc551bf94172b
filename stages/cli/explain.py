"""Translate errors that the user can correct into one line: what is wrong, where, and what to type.

The errors are of three kinds: a key or value that the configuration does not have, an option or file that is missing,
and an argument that Hydra cannot read."""

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
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from stages.cli import spelling
from stages.cli.settings import all_settings
from stages.config.blocks.arguments import TrainerArguments
from stages.config.errors import (
    SYNONYMS,
    UserError,
    causes,
    full_disk_message,
    nearest,
    suggest,
    visible,
)
from stages.config.limits import COMPUTED
from stages.config.schema import CONF, OPTIONS, Config
from stages.config.trainers import elsewhere_message
from stages.hardware import process

# The keys of Hydra that a recipe may set
OF_HYDRA = {
    "hydra.mode",
    "hydra.sweeper.params",
    "hydra.sweeper.n_trials",
    "hydra.sweeper.n_jobs",
    "hydra.sweeper.direction",
}
# Errors of the file system that another folder mends
OF_FOLDER = {
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


def explain(error: BaseException) -> str | None:
    """Return one line for an error that the user can correct; None for a bug, which needs its traceback."""
    message = error_message(error)
    return None if message is None else visible(message)


@contextmanager
def explained() -> Iterator[None]:
    """End the process with one line if the block raises an error that the user can correct."""
    try:
        yield
    except Exception as error:
        line = explain(error)
        if is_gate():
            sys.stderr.write(f"error: {line}\n" if line else traceback.format_exc())
            sys.exit(2)  # 1 is for a worse policy
        if line is None:
            raise
        sys.exit(f"error: {line}")


def is_gate() -> bool:
    """Return whether the command line has stage=gate."""
    typed = spelling.typed_values(process.read_typed_arguments())
    return typed.get("stage", "").strip("'\"") == "gate"


def error_message(error: BaseException) -> str | None:
    """Return the message of the first error in a chain of causes that has one."""
    message = full_disk_message(error)
    if message:
        return message
    chain = list(causes(error))
    for cause in chain:
        message = cause_message(cause)
        if message:
            return message
    config_errors = [cause for cause in chain if isinstance(cause, OmegaConfBaseException)]
    config_errors.sort(key=has_key)
    if config_errors:  # the innermost error with a key says most
        place = next(filter(None, map(place_prefix, chain)), "")
        return setting_message(config_errors[-1], place)
    if isinstance(error, OSError):
        return folder_message(error)
    return " ".join(str(error).split()) if isinstance(error, HydraException) else None


def has_key(error: OmegaConfBaseException) -> bool:
    return bool(error.full_key)


def cause_message(error: BaseException) -> str | None:
    """Return the message of an error that needs no other one of its chain; None for any other error."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return missing_option_message(error)
    if isinstance(error, OverrideParseException):
        return unreadable_message(error.override.lstrip("+"))
    ambiguous = re.match(r"Ambiguous value for argument '(.+)'", str(error))
    if ambiguous:
        return several_values_message(ambiguous[1])
    if type(error).__name__ == "OutOfMemoryError":
        what = str(error).partition(". ")[0]
        return f"{what}. Lower token_budget or batch_size in the runtime of this stage, or set its runtime.device=cpu."
    return None


# Keys and values that the configuration does not have


def place_prefix(error: BaseException) -> str:
    """Return the file or override that Hydra was merging, as `"recipes/x.yaml: "` or `"dpo.beta=x: "`, else ''."""
    if not isinstance(error, ConfigCompositionException):
        return ""
    override = re.match(r"Error merging override (.+)|Could not override '(.+\W.+)'", str(error))
    if override:
        return f"{(override[1] or override[2]).lstrip('+')}: "
    merged_file = re.match(r"In '(\w+)/(.+?)': ", str(error))
    return f"{option_file(merged_file[1], merged_file[2])}: " if merged_file else ""


def setting_message(error: OmegaConfBaseException, place: str) -> str:
    """Return the message for an unknown key or a wrong value, after `place`: the file or override."""
    key = str(error.full_key or error.key or place.partition("=")[0])
    if is_dataclass(error.object_type) and "not in" in str(error):
        message = unknown_key_message(key, error.object_type)  # type: ignore[arg-type]  # a class
        return message if place.startswith(key) else place + message
    head = "" if key.partition("[")[0] in place else f"{key}: "
    setting = all_settings().get(re.sub(r"\[\d+\]$", "", key))
    if setting is None or isinstance(error, InterpolationResolutionError):
        return f"{place}{head}{str(error).splitlines()[0].removesuffix('.')}."
    accepted = setting.type_words
    if spelling.is_list(setting.key):
        accepted += f", as {setting.key}=[…]"
    if is_dataclass(setting.kind):
        accepted = f"its keys, as {key}.{fields(setting.kind)[0].name}=VALUE"
    return f"{place}{head}this value is not accepted. Accepted: {accepted}."


def unknown_key_message(key: str, kind: type) -> str:
    """Return the message for a key that its block, of class `kind`, does not have, with the nearest name."""
    block, _, name = key.rpartition(".")
    if issubclass(kind, TrainerArguments):
        objective = block.partition(".")[0]
        message = elsewhere_message(objective, name)
        more = f" Other arguments of TRL go into {block}.extra."
        return f"{key}: {message}" if message else unknown_key(key, kind) + more
    return other_option_message(key, kind) or unknown_key(key, kind)


def unknown_key(key: str, kind: type) -> str:
    """Return the message for a key that no option of a group has."""
    block, _, name = key.rpartition(".")
    names = known_keys(kind)
    if kind is Config:
        names += [path.name for path in CONF.iterdir() if path.is_dir()]
    elsewhere = keys_called(name, block)
    is_here = SYNONYMS.get(name) in names or nearest(name, names, 0.8)
    if 0 < len(elsewhere) <= 3 and not is_here:
        return f"{key} is not a setting. Did you mean {' or '.join(elsewhere)}?"
    return f"{key} is not a setting.{suggest(name, names)}"


def keys_called(name: str, block: str) -> list[str]:
    """Return the keys of the configuration with a name, or the name here of what other tools call so: those inside a
    block, else of all blocks."""
    names = (name, SYNONYMS.get(name))
    keys = [key for key in all_settings() if key.rpartition(".")[2] in names]
    return [key for key in keys if block and key.startswith(f"{block}.")] or keys


def other_option_message(key: str, kind: type) -> str | None:
    """Return the message for a key that other options of the group have; None if no option has it."""
    name = key.rpartition(".")[2]
    for group, kinds in OPTIONS.items():
        chosen = [option for option, each in kinds.items() if each is kind]
        having = [f"{group}={option}" for option in kinds if name in known_keys(kinds[option])]
        if chosen and having:
            problem = f"{key}: {group}={chosen[0]} does not have this key"
            return f"{problem}. Add {' or '.join(having)}, or leave the key out."
    return None


def known_keys(kind: type) -> list[str]:
    """Return the keys of a block that can be typed."""
    return [key.name for key in fields(kind) if COMPUTED not in key.metadata]


# Options and files that are missing


def missing_option_message(error: MissingConfigException) -> str:
    """Return the message for an option of a group that does not exist, or for a recipe that cannot be read."""
    missing = str(error.missing_cfg_file or "")
    group, _, name = missing.partition("/")
    if group in ("eval", "hydra"):  # which have groups inside
        group, _, name = missing.rpartition("/")
    if group == "recipe":
        return missing_recipe_message(name)
    if not name:
        return str(error).splitlines()[0]
    options = error.options or [path.stem for path in (CONF / group).glob("*.yaml")]
    way_out = suggest(name, options)
    if group in ("model", "label"):
        way_out += f" For a folder or a hub id, type {group}.path={name}."
    return f"{group}={name} does not exist.{way_out}"


def missing_recipe_message(name: str) -> str:
    files = spelling.recipe_files(name)
    path = files.get(name)
    if path is None or not path.is_file():
        return f"recipe={name} does not exist.{suggest(name, spelling.recipe_files())}"
    problem = yaml_problem(path)
    if problem:
        return f"{option_file('recipe', name)} is not valid YAML: {problem}. Correct the file."
    keys = ", ".join(forbidden_keys(OmegaConf.load(path)))
    allowed = ", ".join(sorted(OF_HYDRA))
    return f"{option_file('recipe', name)} sets {keys}. It may only set {allowed} of Hydra."


def option_file(group: str, name: str) -> str:
    """Return the path that messages use for the file of a group's option."""
    if group == "recipe" and name.endswith(".yaml"):
        return name
    return f"recipes/{name}.yaml" if group == "recipe" else f"conf/{group}/{name}.yaml"


def forbidden_keys(recipe: Any) -> list[str]:
    """Return the keys of Hydra that a recipe sets but must not: some name code, which Hydra imports even to plan."""
    hydra = (recipe or {}).get("hydra") or {}
    keys = [f"hydra.{key}" for key in hydra if key != "sweeper"]
    keys += [f"hydra.sweeper.{key}" for key in hydra.get("sweeper") or {}]
    return [key for key in keys if key not in OF_HYDRA]


def yaml_problem(path: Path) -> str:
    """Return why a file is not a YAML mapping, and where, or '' if it is one."""
    try:
        keys = OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return f"line {line}, {error.problem}"
    except (ValueError, OSError, yaml.YAMLError) as error:
        return " ".join(str(error).split())
    return "" if isinstance(keys, DictConfig) and keys else "it has no KEY: VALUE"


def folder_message(error: OSError) -> str | None:
    """Return the message for a file or folder that cannot be read or made; None for an error that may be a bug."""
    name = str(error.filename or "")
    if isinstance(error, PermissionError) and os.path.exists(name) and not os.access(name, os.R_OK):
        return f"{name}: {error.strerror}. Its owner can let others read it: chmod -R go+rX FOLDER."
    # A folder may not be made because something is missing, as under /proc. Any other missing file may be a bug.
    frames = traceback.extract_tb(error.__traceback__)
    if error.errno in OF_FOLDER or frames[-1].name == "mkdir":
        return (
            f"{name}: {error.strerror}. No node is lost. To use another store, set outputs=FOLDER."
        )
    return None


# Arguments that Hydra cannot read


def unreadable_message(argument: str) -> str:
    """Return the message for an argument that Hydra cannot parse."""
    key, equals, value = argument.partition("=")
    if not equals:
        return f"{key}: an argument must be KEY=VALUE."
    problem = (
        f"{' '.join(argument.split())}: cannot be read. Close all brackets, and put texts in quotes"
    )
    if value.startswith(("[", "{")):
        return f"{problem}, or write the setting into a file: recipe=FILE.yaml."
    return f"{problem}: {quoted(key, value)}"


def several_values_message(argument: str) -> str:
    """Return the message for values with commas, which may be a sweep, a list or one text."""
    key, _, value = argument.partition("=")
    form = quoted(key, value)
    if spelling.is_list(key) or key == "tracker":
        form = shlex.quote(f"{key}=[{value}]")
    return (
        f"{argument}: several values. To try one after the other, add -m. As one value, type {form}"
    )


def quoted(key: str, value: str) -> str:
    """Return an argument whose value is in quotes, as a shell reads it."""
    text = value.strip("\"'").replace('"', '\\"')
    return shlex.quote(f'{key}="{text}"')
