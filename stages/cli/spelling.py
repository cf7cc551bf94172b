"""The spelling of arguments: refuse those that Hydra cannot read or would misread, and suggest the right form."""

import re
import shlex
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.errors import OverrideParseException

from stages.config.blocks.training import OBJECTIVES
from stages.config.errors import UserError, suggest
from stages.config.limits import ONE_OF
from stages.config.schema import CONF, RECIPES, Config, options_of
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
NO_WORD = re.compile(r"(\w+)=(-?\d[\w.+-]*|true|false|null)", re.IGNORECASE)
# of a mapping: Hydra reads none with quotes
FOREIGN_NAME = re.compile(r"[{,][^:,{}]*[^\x00-\x7f:,{}][^:,{}]*:")
PLAIN = re.compile(r"[\w./%@?*+-]+", re.ASCII)  # text that needs no quotes


def typed_values(line: list[str]) -> dict[str, str]:
    """Return the keys and groups that a command line sets, with their values as typed."""
    matches = (re.fullmatch(r"\+*([\w./]+)=(.*)", argument, re.DOTALL) for argument in line)
    return {match[1]: match[2] for match in matches if match}


def validate_argument(argument: str) -> None:
    """Raise UserError for an argument that deletes a block, or fails in Hydra or OmegaConf with a traceback."""
    if DELETED.match(argument):
        way_out = "Give it another value, or null if it may have none. To leave out later stages, use stage=NAME"
        raise UserError(f"{argument}: this block or key cannot be deleted. {way_out}.")
    if (dashed := re.fullmatch(r"--([\w.-]+)(=.*)?", argument, re.DOTALL)) and (
        (key := dashed[1].replace("-", "_")) in setting_types()
    ):
        raise UserError(f"{argument}: settings have no dashes. Type {key}{dashed[2] or '=VALUE'}.")
    if re.match(r"\+*hydra\.sweeper\.params\b", argument):
        problem = f"{argument}: only recipes may set hydra.sweeper.params"
        raise UserError(
            f"{problem}. On the command line, type the values and -m: dpo.beta=0.05,0.1 -m"
        )
    if NOWHERE.fullmatch(argument):  # otherwise Hydra writes to the root of the file system
        raise UserError("outputs= is empty. Name a folder for the store: outputs=FOLDER.")
    if chosen := NO_WORD.fullmatch(argument):
        group, word = chosen.groups()
        options = (
            recipe_files()
            if group == "recipe"
            else {path.stem for path in (CONF / group).glob("*.yaml")}
        )
        if options and word not in options:
            raise UserError(f"{group}={word} does not exist.{suggest(word, sorted(options))}")
    name, _, value = argument.lstrip("+").partition("=")
    block, _, entry = re.sub(r"\[\d+\]", "", name).rpartition(".")
    if typing.get_origin(type_of(block)) is list:
        item = (
            f"{{…, {entry}: {value}}}"
            if is_dataclass(typing.get_args(type_of(block))[0])
            else value
        )
        raise UserError(f"{argument}: {block} is a list. Write {shlex.quote(f'{block}=[{item}]')}.")


def recipe_files(*chosen: str) -> dict[str, Path]:
    """Return the recipe files by name: built-in ones, those in recipes/ of the working directory, and the paths in
    `chosen` (`recipe=FILE.yaml`).
    Raise UserError if a chosen name is both a built-in recipe and a different one in recipes/."""
    own, built_in = (
        {path.stem: path for path in folder.glob("*.yaml")} for folder in (Path("recipes"), RECIPES)
    )
    for name in {*chosen} & {*own} & {*built_in}:
        if own[name].read_bytes() != built_in[name].read_bytes():
            problem = f"recipe={name}: a built-in recipe has the name of {own[name]}"
            raise UserError(f"{problem}. Rename the file, or type its path: recipe=./{own[name]}")
    return own | built_in | {name: user_path(name) for name in chosen if name.endswith(".yaml")}


def unreadable_message(error: OverrideParseException) -> str:
    """Return the message for an argument that Hydra cannot parse, with its quoted form."""
    key, equals, value = error.override.lstrip("+").partition("=")
    if not equals:
        return f"{key}: an argument must be KEY=VALUE."
    problem = f"{' '.join(f'{key}={value}'.split())}: cannot be read. Close all brackets, and put texts in quotes"
    if FOREIGN_NAME.search(value):
        return f"{problem}. Names with other letters than a to z can only stand in a file: recipe=FILE.yaml."
    return f"{problem}: {shlex.quote(f'{key}={quote_value(value)}')}"


def quote_value(value: str) -> str:
    """Return a value in quotes; in a list or mapping, only the words that need them are quoted."""
    if not value.startswith(("[", "{")):
        return quote_word(value)
    return re.sub(r"[^\s,:\[\]{}\"'][^,:\[\]{}\"']*", lambda word: quote_word(word[0]), value)


def quote_word(word: str) -> str:
    return word if PLAIN.fullmatch(word) else '"' + word.strip("\"'").replace('"', '\\"') + '"'


def several_values_message(argument: str) -> str:
    """Return the message for values with commas, which may be a sweep, a list or one text."""
    key, _, value = argument.partition("=")
    a_list = typing.get_origin(type_of(key)) is list or key == "tracker"
    form = f"{key}=[{value}]" if a_list else f'{key}="{value}"'
    way_out = f"for {'a list' if a_list else 'one text'}, write {shlex.quote(form)}"
    return f"{argument}: several values. To try one after the other, add -m; {way_out}"


def correct_form(key: str, value: str) -> str:
    """Return the right form for a value of the wrong type, as `" Write 'seeds=[2]'."`, or '' without a suggestion."""
    key = re.sub(r"\[\d+\]$", "", key)
    hint = type_of(key)
    if is_dataclass(hint):
        return f" Set {', '.join(f'{key}.{field.name}' for field in fields(hint))}."
    if typing.get_origin(hint) is not list:
        return ""
    (inner,) = typing.get_args(hint)
    items = (
        [value]
        if value.startswith("{")
        else [item.strip() for item in value.strip("[]").split(",")]
    )
    if is_dataclass(inner):
        first = fields(inner)[0].name
        items = [
            item if item.startswith("{") else f"{{{first}: {quote_word(item)}}}" for item in items
        ]
    unknown = ""
    if allowed := setting_types()[key][1].get(ONE_OF) or [*getattr(inner, "__members__", ())]:
        unknown = "".join(
            f" {item} is unknown.{suggest(item, allowed)}" for item in items if item not in allowed
        )
        items = [item for item in items if item in allowed] or [allowed[0]]
    form = f"{key}=[{', '.join(items)}]"
    return f" Write {shlex.quote(form)}.{unknown}"


@cache
def setting_types() -> dict[str, tuple[Any, Any]]:
    """Return each key's type, without None, and the metadata of its field."""
    return dict(settings_below(Config, ""))


def settings_below(kind: type, prefix: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    types = typing.get_type_hints(kind)
    for field in fields(kind):
        parts = [part for part in typing.get_args(types[field.name]) if part is not type(None)]
        optional = type(None) in typing.get_args(types[field.name])
        hint = parts[0] if optional and len(parts) == 1 else types[field.name]
        key = f"{prefix}{field.name}"
        yield key, (hint, field.metadata)
        options = options_of(key)
        for each in options.values() or [hint]:
            if is_dataclass(each):
                yield from settings_below(each, f"{key}.")  # type: ignore[arg-type]  # a class, as all types are


def type_of(key: str) -> Any:
    return setting_types().get(key, (None, {}))[0]
