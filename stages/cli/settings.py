"""The keys of the configuration: their names, types, defaults and comments."""

import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from stages.config.extras import conf_folders
from stages.config.limits import LIMIT, is_typable
from stages.config.schema import CONF, GROUPS, OPTIONS, RunConfig

TYPES: dict[Any, str] = {
    Any: "any value",
    int: "integer",
    float: "number",
    str: "text",
    bool: "true or false",
    type(None): "null",
}
OPTIONAL = "optional "  # before a group of an extra in a list of defaults
# A key of a YAML file, or a class or field of a Python file, with the comment behind it
NAMED_LINE = re.compile(r"( *)(?:class )?(\w+)[:(].*?(?:\s# (?!type:|noqa)(.*))?")


@dataclass(frozen=True)
class Setting:
    """A key. `kind` is its type without None, and `block` the dataclass that has it as a `field`."""

    key: str
    kind: Any
    hint: Any
    block: type
    field: "Field[Any]"

    @property
    def items(self) -> Any:
        """The type of the items, if the value is a list or a mapping; else None."""
        if typing.get_origin(self.kind) in (list, dict):
            return typing.get_args(self.kind)[-1]
        return None

    @property
    def type_words(self) -> str:
        """The type as a user would name it, with the limit."""
        words = type_words(self.hint)
        limit = self.field.metadata.get(LIMIT)
        if not limit:
            return words
        low = f"{'>' * limit.open}{limit.low:,}"
        high = f"{'<' * limit.below}{limit.high:,}" if limit.has_high else "∞"
        return f"{words}, {low}–{high}"

    @property
    def comment(self) -> str:
        """The comment beside the key in conf/, else at the field in its class or a base class; with the docstring of
        a block."""
        comments = [comments_in_conf().get(self.key)]
        for owner in inspect.getmro(self.block):
            if is_dataclass(owner):
                source = Path(str(sys.modules[owner.__module__].__file__))
                name = f"{owner.__name__}.{self.field.name}"
                comments.append(comments_in_file(source).get(name))
        comment = next(filter(None, comments), "")
        if not is_dataclass(self.kind):
            return comment
        docstring = " ".join((self.kind.__doc__ or "").split())
        if re.match(r"\w+\(", docstring):  # Python made it
            return comment
        return ". ".join(filter(None, (comment, docstring)))


def settings_of(kind: type, prefix: str = "") -> Iterator[Setting]:
    """Yield the keys of a block that a user can type, and those of the blocks inside it."""
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        if not is_typable(field):
            continue
        key, hint = f"{prefix}{field.name}", hints[field.name]
        parts = [part for part in parts_of(hint) if part is not type(None)]
        inner = parts[0] if len(parts) == 1 else hint
        yield Setting(key, inner, hint, kind, field)
        if is_dataclass(inner):
            yield from settings_of(inner, f"{key}.")  # type: ignore[arg-type]  # a class, as all types are


@cache
def all_settings() -> dict[str, Setting]:
    """Return the keys of the configuration by name, with those of every option of a group."""
    settings = {setting.key: setting for setting in settings_of(RunConfig)}
    for group, kinds in OPTIONS.items():
        for kind in kinds.values():
            settings |= {s.key: s for s in settings_of(kind, f"{block_of(group)}.")}
    return settings


def block_of(group: str) -> str:
    """Return the block that the options of a group fill."""
    blocks_by_group = {name: block for block, name in GROUPS.items()}
    return blocks_by_group.get(group, group.replace("/", "."))


def parts_of(hint: Any) -> list[Any]:
    """Return the types of a union, or the one type."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return list(typing.get_args(hint)) if is_union else [hint]


def type_words(hint: Any) -> str:
    """Return a type as a user would name it: of an enum, its words."""
    words = [part_words(part) for part in parts_of(hint)]
    return " or ".join(words).replace("integer or number", "number")


def part_words(kind: Any) -> str:
    collection = {list: "list", dict: "mapping"}.get(typing.get_origin(kind))
    if collection:
        items = typing.get_args(kind)[-1]
        words = (
            items.__qualname__
            if inspect.isclass(items) and is_dataclass(items)
            else type_words(items)
        )
        return f"{collection} of {words}".removesuffix(f" of {TYPES[Any]}")
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return ", ".join(kind)
    return TYPES.get(kind, "block")


def value_words(value: Any) -> str:
    if value == "???":
        return "required"
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False).replace('"', "")


@cache
def comments_in_conf() -> dict[str, str]:
    """Return the comments in conf/ by key. That of a group's default option comes before those of other options."""
    options = default_options()
    comments: dict[str, str] = {}
    for group, files in option_files().items():
        default = [path for path in files if option_of(path) == options.get(group)]
        for path in [*files, *default]:  # the last comment on a key counts
            block = package_of(path) or block_of(group)
            if block != "_global_":
                comments |= with_block(block, comments_in_file(path))
            elif path in default:
                comments |= comments_in_file(path)
    comments |= with_block("data", comments_in_file(CONF / "_base_rows.yaml"))
    comments |= with_block("sample", comments_in_file(CONF / "_base_drawn.yaml"))
    return comments | comments_in_file(CONF / "config.yaml")


def with_block(block: str, texts_by_key: dict[str, str]) -> dict[str, str]:
    """Return texts by keys of a block, with the block's name before each key."""
    return {f"{block}.{key}": text for key, text in texts_by_key.items()}


@cache
def comments_in_file(path: Path) -> dict[str, str]:
    """Return the comments beside the keys of a YAML file, or the fields of a Python file: behind, or in the lines
    above. A field's name is `Class.field`."""
    comments: dict[str, str] = {}
    names: dict[int, str] = {}  # of the blocks around a line, by their indentation
    above = list[str]()
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines[len(leading_comment(lines)) :]:
        if line.lstrip().startswith("# "):
            above.append(line.lstrip(" #"))
            continue
        named = NAMED_LINE.fullmatch(line)
        if named:
            depth = len(named[1])
            names = {place: name for place, name in names.items() if place < depth}
            names[depth] = named[2]
            comment = named[3] or " ".join(above)
            if comment:
                comments[".".join(names.values())] = comment
        above = []
    return comments


def leading_comment(lines: list[str]) -> list[str]:
    """Return the lines of the comment that a file begins with."""
    code = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:code]


@cache
def option_files() -> dict[str, list[Path]]:
    """Return the files of each group's options, by the group: those of conf/ and of extras."""
    files: dict[str, list[Path]] = {}
    for folder in (CONF, *conf_folders()):
        for path in folder.rglob("*/*.yaml"):
            files.setdefault(path.parent.relative_to(folder).as_posix(), []).append(path)
    return {group: sorted(files[group], key=option_of) for group in sorted(files)}


def option_of(path: Path) -> str:
    """Return the option of a group that a file is."""
    return path.stem


def package_of(path: Path) -> str:
    """Return the block that an option's file fills by its line `# @package`; '' for the block of its group."""
    package = re.search(r"# @package (\S+)", path.read_text(encoding="utf-8"))
    return package[1] if package else ""


@cache
def default_options() -> dict[str, str]:
    """Return the option that each group has by default."""
    options: dict[str, str] = {}
    for entry in OmegaConf.load(CONF / "config.yaml").defaults:
        if not isinstance(entry, str):
            options |= {group.removeprefix(OPTIONAL): option for group, option in entry.items()}
    return options


def first_comment(path: Path) -> str:
    """Return the sentences that a file begins with, without `# @package` and lines as `#   command: …`."""
    head = leading_comment(path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ") for line in head if not re.match(r"#\s{2,}|# @", line))
