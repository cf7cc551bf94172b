"""Read the arguments of a command line, and refuse those on which Hydra ends with a traceback."""

import re
import typing
from collections.abc import Sequence

from stages.cli.recipe_layers import recipe_files
from stages.cli.settings import all_settings, option_files
from stages.config.errors import UserError, suggest

MULTIRUN = {"-m", "--multirun"}
WORDLESS = re.compile(r"-?\d[\w.+-]*|true|false|null", re.IGNORECASE)


def typed_values(line: Sequence[str]) -> dict[str, str]:
    """Return the keys and groups that a command line sets, with their values as typed."""
    values: dict[str, str] = {}
    for argument in line:
        match = re.fullmatch(r"\+*([\w./]+)=(.*)", argument, re.DOTALL)
        if match:
            values[match[1]] = match[2]
    return values


def validate_argument(argument: str) -> None:
    """Raise UserError for an argument that Hydra ends on with a traceback, or reads as another one."""
    key, _, value = argument.lstrip("+").partition("=")
    block = key.rpartition(".")[0]
    if argument.startswith("~"):
        raise UserError(f"{argument}: nothing can be deleted. Type another value, or null.")
    if key == "outputs" and not value.strip("'\" "):
        raise UserError("outputs= is empty. Name a folder for the store: outputs=FOLDER.")
    if key.startswith("hydra.sweeper.params"):
        raise UserError(
            f"{argument}: only recipes may set hydra.sweeper.params. Type values and -m: dpo.beta=0.05,0.1 -m"
        )
    if key in (*option_files(), "recipe") and WORDLESS.fullmatch(value):
        options = [path.stem for path in option_files().get(key, ())]
        raise UserError(f"{argument} does not exist.{suggest(value, options or recipe_files())}")
    if is_list(block):
        raise UserError(f"{argument}: {block} is a list. Type all of it: '{block}=[…]'.")


def is_list(key: str) -> bool:
    """Return whether a key has a list as its value."""
    setting = all_settings().get(key)
    return setting is not None and typing.get_origin(setting.kind) is list


def is_open(argument: str) -> bool:
    """Return whether an argument may add keys to a mapping, which Hydra only does behind `++`."""
    key, _, value = argument.partition("=")
    if value.startswith("{"):
        return True
    mappings = [
        name for name, each in all_settings().items() if typing.get_origin(each.kind) is dict
    ]
    return any(f"{key}.".startswith(f"{name}.") for name in mappings)
