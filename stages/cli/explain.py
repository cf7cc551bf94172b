"""Translate errors that the user can correct into one line: what is wrong, where, and what to type.

The errors are of three kinds: a key or value that the configuration does not have, an option or file that is missing,
and an argument that Hydra cannot read."""

import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path

import yaml
from hydra.errors import (
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from stages.cli.recipe_layers import (
    ALLOWED_HYDRA_KEYS,
    forbidden_hydra_keys,
    load_recipe_file,
    recipe_files,
)
from stages.cli.settings import all_settings, option_files, option_of
from stages.cli.spelling import is_list, store_folder
from stages.cli.typed_line import line_of_process
from stages.config.blocks.arguments import TrainerArguments
from stages.config.commands import COMMANDS
from stages.config.errors import (
    SYNONYMS,
    LimitReached,
    UserError,
    causes,
    file_error_message,
    full_disk_message,
    nearest,
    suggest,
    visible,
)
from stages.config.exit_codes import ExitCode, GateCode
from stages.config.installation import ROOT, program
from stages.config.limits import is_typable
from stages.config.renamed import old_key_message, old_value_message
from stages.config.schema import CONF, OPTIONS, RunConfig
from stages.config.trainers import not_passed_on_message


@contextmanager
def explained() -> Iterator[None]:
    """End the process with one line if the block raises an error that the user can correct, or stops at a limit."""
    try:
        yield
    except LimitReached as reached:
        sys.stderr.write(f"stopped: {explain(reached)}\n")
        sys.exit(ExitCode.stopped)
    except Exception as error:
        line = explain(error)
        command = COMMANDS.get(line_of_process().values.get("stage", "").strip("'\""))
        if command and command.exit_code_is_verdict:
            sys.stderr.write(f"error: {line}\n" if line else traceback.format_exc())
            sys.exit(GateCode.other_prompts)  # 1 is for a worse policy
        if line is None:  # a bug
            raise
        sys.exit(f"error: {line}")


def explain(error: BaseException) -> str | None:
    """Return one line for an error that the user can correct; None for a bug, which needs its traceback."""
    message = full_disk_message(error)
    for cause in causes(error):
        message = message or message_of_error_alone(cause)
    message = message or setting_message([*causes(error)])
    if message is None and isinstance(error, HydraException):
        message = " ".join(str(error).split())
    if message is None:
        return None  # a bug
    return visible(message)


def message_of_error_alone(error: BaseException) -> str | None:
    """Return the message of an error that needs no other one of its chain; None for any other error."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, LimitReached):
        return f"{error} To go on, type: {continuing_command(error)}"
    if isinstance(error, MissingConfigException):
        return missing_option_message(error)
    if isinstance(error, OverrideParseException):
        return unreadable_argument_message(error.override.lstrip("+"))
    message = file_error_message(error, store_folder(line_of_process().values))
    if message:
        return message
    if type(error).__name__ == "OutOfMemoryError":
        what = str(error).partition(". ")[0]
        return f"{what}. Lower token_budget or batch_size in the runtime of this stage, or set its runtime.device=cpu."
    return None


def continuing_command(reached: LimitReached) -> str:
    """Return this command with the higher limit."""
    key = reached.setting.partition("=")[0]
    words = [
        word for word in line_of_process().arguments if word.lstrip("+").partition("=")[0] != key
    ]
    return shlex.join([*program(), *words, reached.setting])


# Keys and values that the configuration does not have


def setting_message(chain: list[BaseException]) -> str | None:
    """Return the message for an unknown key or a wrong value, behind the file that has it; None for other errors."""
    setting_errors = [error for error in chain if isinstance(error, OmegaConfBaseException)]
    if not setting_errors:
        return None
    setting_errors.sort(key=lambda each: bool(each.full_key))
    error = setting_errors[-1]  # the innermost error with a key says most
    in_file = ""
    key = str(error.full_key or error.key or "")  # `--cfg job --resolve` has none
    where = key
    for each in chain:  # Hydra names the file or the argument that it was merging
        option = re.match(r"In '(\w+)/(.+?)': ", str(each))
        argument = re.match(
            r"(?:Error merging override|Could not override .+\nTo append .+ use) \+*(.+)", str(each)
        )
        if option:
            in_file = f"{shown_path(option[1], option[2])}: "
        elif argument and key.partition("[")[0] in argument[1]:
            where = argument[1]
    if is_dataclass(error.object_type) and "not in" in str(error):
        is_nested = not where.startswith(key)  # in a list that was typed as a whole
        typed = key if is_nested else where
        message = unknown_key_message(key, error.object_type, typed)  # type: ignore[arg-type]  # a class
        return f"{in_file}{where}: {message}" if is_nested else in_file + message
    setting = all_settings().get(re.sub(r"\[\d+\]$", "", key))
    if setting is None or isinstance(error, InterpolationResolutionError):
        first_line = str(error).splitlines()[0].removesuffix(".")
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", first_line)
        place = f"{where}: " if where else ""
        return f"{in_file}{place}{reason}."
    accepted = setting.type_words
    if is_list(setting.key):
        accepted += f", as {setting.key}=[…]"
    if is_dataclass(setting.kind):
        accepted = f"its keys, as {setting.key}.{typable_keys(setting.kind)[0]}=VALUE"  # type: ignore[arg-type]  # a class
    way_out = f"Accepted: {accepted}. See --help={setting.key}."
    return f"{in_file}{where}: this value is not accepted. {way_out}"


def unknown_key_message(key: str, block_class: type, argument: str = "") -> str:
    """Return the message for a key that its block, of this class, does not have: its name now, or the nearest name.
    `argument`: the typed one with the key."""
    block, _, name = key.rpartition(".")
    way_to_trl = ""
    if issubclass(block_class, TrainerArguments):
        message = not_passed_on_message(block.partition(".")[0], name)
        if message:
            return f"{key}: {message}"
        way_to_trl = f" Other arguments of TRL go into {block}.extra."
    for group, kinds in OPTIONS.items():
        chosen = [option for option, each in kinds.items() if each is block_class]
        having = [f"{group}={option}" for option in kinds if name in typable_keys(kinds[option])]
        was_block_of_option = name in chosen
        if chosen and having and not was_block_of_option:
            problem = f"{key}: {group}={chosen[0]} does not have this key"
            return f"{problem}. Add {' or '.join(having)}, or leave the key out."
    old_word = old_key_message(argument or key)
    if old_word:
        return old_word
    names = typable_keys(block_class)
    if block_class is RunConfig:
        names = [*{*names, *option_files()}]
    elsewhere = keys_called(name, block)
    is_here = SYNONYMS.get(name) in names or nearest(name, names, 0.8)
    if 0 < len(elsewhere) <= 4 and not is_here:
        return f"{key} is not a setting. Did you mean {' or '.join(elsewhere)}?"
    return f"{key} is not a setting.{suggest(name, names)}{way_to_trl}"


def keys_called(name: str, block: str) -> list[str]:
    """Return the keys of the configuration with a name, or the name here of what other tools call so: those inside a
    block, else of all blocks."""
    name_here = SYNONYMS.get(name)
    keys = [key for key in all_settings() if key.rpartition(".")[2] in (name, name_here)]
    return [key for key in keys if key.startswith(f"{block}.")] or keys


def typable_keys(block_class: type) -> list[str]:
    """Return the keys of a block that can be typed."""
    return [key.name for key in fields(block_class) if is_typable(key)]


# Options and files that are missing


def missing_option_message(error: MissingConfigException) -> str:
    """Return the message for an option of a group that does not exist, or for a recipe that cannot be read."""
    missing = str(error.missing_cfg_file or "")
    groups = [group for group in (*option_files(), "recipe") if missing.startswith(f"{group}/")]
    if not groups:
        return str(error).splitlines()[0]
    group = max(groups, key=len)
    name = missing.removeprefix(f"{group}/")
    old_word = old_value_message(f"{group}={name}")
    if old_word:
        return old_word
    if group == "recipe":
        return unusable_recipe_message(name)
    way_out = suggest(name, [path.stem for path in option_files()[group]])
    if group in ("model", "label"):
        way_out += f" For a folder or a hub id, type {group}.path={name}."
    return f"{group}={name} does not exist.{way_out}"


def unusable_recipe_message(name: str) -> str:
    """Return the message for a recipe that does not exist, is not a mapping, or sets what no recipe may set."""
    files = recipe_files(name)
    if name not in files or not files[name].is_file():
        return f"recipe={name} does not exist.{suggest(name, recipe_files())}"
    file = shown_path("recipe", name)
    problem = yaml_problem(files[name])
    if problem:
        return f"{file} is not valid YAML: {problem}. Correct the file."
    keys = ", ".join(forbidden_hydra_keys(load_recipe_file(files[name])))
    return f"{file} sets {keys}. It may only set {', '.join(sorted(ALLOWED_HYDRA_KEYS))} of Hydra."


def shown_path(group: str, option: str) -> str:
    """Return the path that messages use for the file of a group's option."""
    if group != "recipe":
        files = {option_of(path): path for path in option_files().get(group, ())}
        of_extra = option in files and not files[option].is_relative_to(CONF)
        return str(files[option].relative_to(ROOT)) if of_extra else f"conf/{group}/{option}.yaml"
    return option if option.endswith(".yaml") else f"recipes/{option}.yaml"


def yaml_problem(path: Path) -> str:
    """Return why a file is not a YAML mapping, and where, or '' if it is one."""
    try:
        keys = load_recipe_file(path)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return f"line {line}, {error.problem}"
    except (ValueError, OSError, yaml.YAMLError) as error:
        return " ".join(str(error).split())
    return "" if isinstance(keys, DictConfig) and keys else "it has no KEY: VALUE"


# Arguments that Hydra cannot read


def unreadable_argument_message(argument: str) -> str:
    """Return the message for an argument that Hydra cannot parse."""
    key, equals, value = argument.partition("=")
    if not equals:
        return f"{key}: an argument must be KEY=VALUE."
    problem = f"{argument}: cannot be read. Close all brackets, and put texts in quotes"
    if value.startswith(("[", "{")):
        return f"{problem}, or write the setting into a file: recipe=FILE.yaml."
    text = value.strip("\"'").replace('"', '\\"')
    form = shlex.quote(f'{key}="{text}"')
    return f"{problem}: {form}"
