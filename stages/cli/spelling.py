"""How arguments are written: which cannot be read or say another thing than they seem to, and how to mend them."""

import re
import shlex
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException

from stages.config.blocks.training import OBJECTIVES
from stages.config.errors import UserError, nearest
from stages.config.limits import ONE_OF
from stages.config.schema import CONF, RECIPES, Config
from stages.store.plugins import user_path

# Keys that no type names.
FREE = rf"({'|'.join(OBJECTIVES)})\.trainer\.[\w.]+|(data|sample|label|eval\.judged)\.own[.\w]*|prices"
FREE += r"|sample\.endpoint\.extra\.\w+"
FREE += r"|label\.(columns|labels)[.\w]*|sample\.columns[.\w]*"
FREE += r"|data\.(audit\.(actions|thresholds)|mixture\.quotas)[.\w]*"
DELETED = re.compile(rf"~(?!({FREE}|recipe|scale|hydra/\w+)(=|$))")
NOWHERE = re.compile(r"outputs=\s*(['\"]?)\s*\1\s*")
NO_WORD = re.compile(r"(\w+)=(-?\d[\w.+-]*|true|false|null)", re.IGNORECASE)
PLAIN = re.compile(r"[\w./%@?*+-]+", re.ASCII)  # what needs no quotes
CARET = len("LexerNoViableAltException: ")  # before an override that Hydra's lexer stumbled over


def refuse(argument: str) -> None:
    """Raise UserError for an argument on which Hydra or OmegaConf would fail with a traceback, or delete a block."""
    if DELETED.match(argument):
        raise UserError(
            f"{argument}: a block or key that every run has cannot be deleted. Give it another value (null where it "
            "may have none), or stop before it: stage=NAME."
        )
    if re.match(r"\+*hydra\.sweeper\.params\b", argument):
        raise UserError(
            f"{argument}: hydra.sweeper.params is for recipes. On the command line, type the values and -m: "
            "dpo.beta=0.05,0.1 -m"
        )
    if NOWHERE.fullmatch(argument):  # Hydra would begin to write there before anybody is asked
        raise UserError("outputs= names no folder. Say where the store is: outputs=FOLDER.")
    if chosen := NO_WORD.fullmatch(argument):
        group, word = chosen.groups()
        options = recipe_files() if group == "recipe" else {path.stem for path in (CONF / group).glob("*.yaml")}
        if options and word not in options:
            raise UserError(f"{group}={word} does not exist.{nearest(word, sorted(options))}")


def recipe_files(*chosen: str) -> dict[str, Path]:
    """Return the recipe files by name: the built-in ones, those of the working directory's recipes/ with other names,
    and the files among `chosen`, `recipe=FILE.yaml`.

    Raises:
        UserError: where a chosen name means a built-in recipe and another one in recipes/.
    """
    own, built_in = ({path.stem: path for path in folder.glob("*.yaml")} for folder in (Path("recipes"), RECIPES))
    for name in {*chosen} & {*own} & {*built_in}:
        if own[name].read_bytes() != built_in[name].read_bytes():
            raise UserError(
                f"recipe={name}: a built-in recipe and {own[name]} have this name. Rename the file, or type its path: "
                f"recipe=./{own[name]}"
            )
    return own | built_in | {name: user_path(name) for name in chosen if name.endswith(".yaml")}


def unreadable(error: OverrideParseException) -> str:
    """An argument that Hydra's grammar does not take, and the same in quotes."""
    key, equals, value = error.override.partition("=")
    if not equals:
        return f"{error.override}: an argument is KEY=VALUE."
    reason = error.message.splitlines()
    place = len(reason[1]) - 1 - CARET if reason[0].startswith("Lexer") and len(reason) > 1 else -1
    at = f" at {error.override[place]!r}" if 0 <= place < len(error.override) else ""
    told, form = f"{' '.join(error.override.lstrip('+').split())}: cannot be read{at}.", f"{key}={in_quotes(value)}"
    if not readable(form):
        return f"{told} Are all brackets closed, and is the whole argument in quotes for the shell?"
    return f"{told} In quotes it can: {shlex.quote(form.lstrip('+'))}"


def in_quotes(value: str) -> str:
    """A value with quotes around it, or, of a list or mapping, around each word that needs them."""
    if not value.startswith(("[", "{")):
        return quoted(value)
    return re.sub(r"[^\s,:\[\]{}\"'][^,:\[\]{}\"']*", lambda word: quoted(word[0]), value)


def quoted(word: str) -> str:
    return word if PLAIN.fullmatch(word) else '"' + word.strip("\"'").replace('"', '\\"') + '"'


def readable(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def several(argument: str) -> str:
    """Values with commas between them, which are a sweep, a list or one text."""
    key, _, value = argument.partition("=")
    a_list = typing.get_origin(hint_of(key)) is list
    form = f"{key}=[{value}]" if a_list else f'{key}="{value}"'
    return (
        f"{argument}: several values. -m at the end tries one after the other; "
        f"{'a list' if a_list else 'one text'} is {shlex.quote(form)}"
    )


def right_form(key: str, given: str) -> str:
    """What a value of the wrong type should look like: `" Write 'seeds=[2]'."`; "" where its type says enough."""
    key = re.sub(r"\[\d+\]$", "", key)
    hint = hint_of(key)
    if is_dataclass(hint):
        names = [f"{key}.{field.name}" for field in fields(hint)]
        return f" Set {', '.join(names)}."
    if typing.get_origin(hint) is not list:
        return ""
    (inner,) = typing.get_args(hint)
    items = [given] if given.startswith("{") else [item.strip() for item in given.strip("[]").split(",")]
    if is_dataclass(inner):
        first = fields(inner)[0].name
        items = [item if item.startswith("{") else f"{{{first}: {quoted(item)}}}" for item in items]
    unknown = ""
    if known := words_of(key):
        unknown = "".join(f" {item} is unknown.{nearest(item, known)}" for item in items if item not in known)
        items = [item for item in items if item in known] or [known[0]]
    form = f"{key}=[{', '.join(items)}]"
    return f" Write {shlex.quote(form)}.{unknown}"


@cache
def hints() -> dict[str, tuple[Any, Any]]:
    """Every key with its type, None taken out of it, and its field's metadata."""
    return dict(below(Config, ""))


def below(kind: type, prefix: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    types = typing.get_type_hints(kind)
    for field in fields(kind):
        given = [part for part in typing.get_args(types[field.name]) if part is not type(None)]
        optional = type(None) in typing.get_args(types[field.name])
        hint = given[0] if optional and len(given) == 1 else types[field.name]
        yield f"{prefix}{field.name}", (hint, field.metadata)
        if is_dataclass(hint):
            yield from below(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]  # a class, as all types are


def hint_of(key: str) -> Any:
    return hints().get(key, (None, {}))[0]


def words_of(key: str) -> tuple[str, ...]:
    found: tuple[str, ...] = hints().get(key, (None, {}))[1].get(ONE_OF, ())
    return found
