"""Read the arguments of a command line, and refuse those that Hydra cannot read or would misread."""

import re
import shlex
import typing
from collections.abc import Callable
from pathlib import Path

from stages.cli.settings import all_settings
from stages.config.blocks.training import OBJECTIVES
from stages.config.errors import UserError, suggest
from stages.config.schema import CONF, RECIPES
from stages.store.plugins import user_path

MULTIRUN = {"-m", "--multirun"}
# Keys inside open dicts, which no dataclass lists.
FREE = (
    rf"({'|'.join(OBJECTIVES)})\.trainer\.(extra|lr_scheduler_kwargs)[\w.]*"
    r"|(data|sample|label|eval\.judged)\.own[.\w]*|prices"
)
FREE += r"|(plan\.tokens|model\.config)[.\w]*|sample\.endpoint(\.extra[.\w]*)?"
FREE += r"|(label|data\.file)\.(columns|labels|splits)[.\w]*|sample\.columns[.\w]*"
FREE += r"|data\.(audit\.(actions|thresholds)|mixture\.quotas)[.\w]*"
DELETED = re.compile(rf"~(sample\.endpoint$|(?!({FREE}|recipe|scale|hydra/\w+)(=|$)))")
NOWHERE = re.compile(r"outputs=\s*(['\"]?)\s*\1\s*")
DASHED = re.compile(r"--([\w.-]+)(=.*)?", re.DOTALL)
OPTION_WITHOUT_LETTERS = re.compile(r"(\w+)=(-?\d[\w.+-]*|true|false|null)", re.IGNORECASE)


def typed_values(line: list[str]) -> dict[str, str]:
    """Return the keys and groups that a command line sets, with their values as typed."""
    values: dict[str, str] = {}
    for argument in line:
        match = re.fullmatch(r"\+*([\w./]+)=(.*)", argument, re.DOTALL)
        if match:
            values[match[1]] = match[2]
    return values


def validate_argument(argument: str) -> None:
    """Raise UserError for an argument that deletes a block, or on which Hydra ends with a traceback."""
    for check in CHECKS:
        check(argument)


def refuse_deletion(argument: str) -> None:
    if DELETED.match(argument):
        way_out = "Give it another value, or null. To leave out later stages, use stage=NAME"
        raise UserError(f"{argument}: this block or key cannot be deleted. {way_out}.")


def refuse_dashes(argument: str) -> None:
    """Refuse `--seed=3`."""
    dashed = DASHED.fullmatch(argument)
    key = dashed[1].replace("-", "_") if dashed else ""
    if dashed and key in all_settings():
        raise UserError(f"{argument}: settings have no dashes. Type {key}{dashed[2] or '=VALUE'}.")


def refuse_swept_parameters(argument: str) -> None:
    """Refuse a sweep that is not typed as values, which a message could not name."""
    if re.match(r"\+*hydra\.sweeper\.params\b", argument):
        problem = f"{argument}: only recipes may set hydra.sweeper.params"
        raise UserError(f"{problem}. Type the values and -m: dpo.beta=0.05,0.1 -m")


def refuse_no_store(argument: str) -> None:
    """Refuse an empty `outputs`, with which Hydra would write to the root of the file system."""
    if NOWHERE.fullmatch(argument):
        raise UserError("outputs= is empty. Name a folder for the store: outputs=FOLDER.")


def refuse_odd_option(argument: str) -> None:
    """Refuse a number, true or null for a group, whose options are words."""
    match = OPTION_WITHOUT_LETTERS.fullmatch(argument)
    if match is None:
        return
    group, word = match.groups()
    options = [path.stem for path in (CONF / group).glob("*.yaml")]
    if group == "recipe":
        options = [*recipe_files()]
    if options and word not in options:
        raise UserError(f"{group}={word} does not exist.{suggest(word, options)}")


def refuse_key_in_list(argument: str) -> None:
    """Refuse `data.sources.path=x`, as only a whole list has a value."""
    name, _, value = argument.lstrip("+").partition("=")
    block, _, entry = re.sub(r"\[\d+\]", "", name).rpartition(".")
    if is_list(block):
        form = shlex.quote(f"{block}=[{{{entry}: {value}}}]")
        if all_settings()[block].items in (int, float, str):
            form = shlex.quote(f"{block}=[{value}]")
        raise UserError(f"{argument}: {block} is a list. Write the whole list, as {form}.")


CHECKS: tuple[Callable[[str], None], ...] = (
    refuse_deletion,
    refuse_dashes,
    refuse_swept_parameters,
    refuse_no_store,
    refuse_odd_option,
    refuse_key_in_list,
)


def is_list(key: str) -> bool:
    """Return whether a key has a list as its value."""
    setting = all_settings().get(key)
    return setting is not None and typing.get_origin(setting.kind) is list


def recipe_files(*chosen: str) -> dict[str, Path]:
    """Return the recipe files by name: built-in ones, those in recipes/ of the working directory, and the paths in
    `chosen` (`recipe=FILE.yaml`).
    Raise UserError if a chosen name is both a built-in recipe and a different one in recipes/."""
    own = {path.stem: path for path in Path("recipes").glob("*.yaml")}
    built_in = {path.stem: path for path in RECIPES.glob("*.yaml")}
    for name in {*chosen} & {*own} & {*built_in}:
        if own[name].read_bytes() != built_in[name].read_bytes():
            problem = f"recipe={name}: a built-in recipe has the name of {own[name]}"
            raise UserError(f"{problem}. Rename the file, or type its path: recipe=./{own[name]}")
    files = own | built_in
    for name in chosen:
        if name.endswith(".yaml"):
            files[name] = user_path(name)
    return files
