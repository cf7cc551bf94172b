"""Read the arguments of a command line, and refuse those on which Hydra ends with a traceback."""

import os
import re
import typing
from collections.abc import Mapping

from stages.cli.recipe_layers import recipe_files
from stages.cli.settings import all_settings, option_files
from stages.config.errors import UserError, suggest
from stages.store import plugins
from stages.store.sealed_json import OUTPUTS

NOT_READ_AS_TEXT = re.compile(r"[+-]?(\d[\w.+-]*|inf|nan)|true|false|null", re.IGNORECASE)
GROUP_OF_SEVERAL = "tracker"  # the options of every other group exclude each other


def store_folder(typed: Mapping[str, str]) -> str:
    """Return the folder of the store that typed values name, or the default one."""
    folder = typed.get("outputs", "").strip("'\"")
    if folder.startswith("~/"):
        return str(plugins.user_path(folder))
    return folder or os.environ.get(OUTPUTS) or "outputs"


def validate_argument(argument: str) -> None:
    """Raise UserError for a deletion, an empty `outputs`, parameters of a sweeper, an option that Hydra does not read
    as text, or an item of a list."""
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
    if key in (*option_files(), "recipe"):
        validate_options(key, value)
    if is_list(block):
        raise UserError(f"{argument}: {block} is a list. Type all of it: '{block}=[…]'.")


def validate_options(group: str, value: str) -> None:
    """Raise UserError for an option of a group that Hydra does not read as text, or for several in a list."""
    options = [word.strip("'\" ") for word in value.strip("[]").split(",")]
    names = [path.stem for path in option_files().get(group, ())]
    for option in options:
        if NOT_READ_AS_TEXT.fullmatch(option) and not value.startswith(("'", '"')):
            raise UserError(
                f"{group}={option} does not exist.{suggest(option, names or recipe_files())}"
            )
    is_list_of_several = value.startswith("[") and len(options) > 1
    if is_list_of_several and group != GROUP_OF_SEVERAL:
        raise UserError(
            f"{group}={value}: its options exclude each other. Type {group}={options[0]}."
        )


def is_list(key: str) -> bool:
    """Return whether a key has a list as its value."""
    setting = all_settings().get(key)
    return setting is not None and typing.get_origin(setting.kind) is list


def may_add_keys(argument: str) -> bool:
    """Return whether an argument may add keys to a mapping."""
    key, _, value = argument.partition("=")
    if value.startswith("{"):
        return True
    mappings = [
        name for name, each in all_settings().items() if typing.get_origin(each.kind) is dict
    ]
    return any(is_inside(key, name) for name in mappings)


def is_inside(key: str, block: str) -> bool:
    """Return whether a key is a block or stands in it."""
    return f"{key}.".startswith(f"{block}.")
