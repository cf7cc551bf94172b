"""Find the column of each role (prompt, completion, …) in a file, and check the columns that no role reads.

A column that no role reads is refused if it changes what the row means. Any other is named once, in a warning."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stages.config.installation import read_beside
from stages.formats.readers.row import ChangesMeaning
from stages.formats.turns import WEIGHTS, is_empty

NAMES = read_beside(__file__)  # of columns that decide how a row is read
# roles that may hold turns
TURN_ROLES = {"messages", "prompt", "completion", "chosen", "rejected", "a", "b"}

CHOICE, THOUGHTS = re.compile(NAMES["choice"]), re.compile(NAMES["thoughts"])
# Columns that rate the answer of their row, with the values that mean a bad answer.
BAD = {
    column: tuple(values.split())
    for values, columns in NAMES["bad"].items()
    for column in columns.split()
}
TEXT_METADATA = set(NAMES["text_metadata"].split())

# a column, then keys or list positions after dots (meta.0.text); or a list of such paths
Path = str | list[str]
# the setting `columns` of a source: paths by role; None leaves a column out
UserColumns = Mapping[str, Path | None]


def normal_name(name: str) -> str:
    """Return a column's name for comparisons: lower case, with `_` for spaces and punctuation."""
    return re.sub(r"\W+", "_", str(name)).strip("_").lower()


def resolve_columns(
    columns: Collection[str], names: Mapping[str, str], user_columns: UserColumns
) -> dict[str, Path]:
    """Return the column of each role: the user's, else the first of the role's `names` in the file that is unused.
    A name with + stands for several columns, which are read as a list. Roles without a column are missing."""
    column_by_name = {normal_name(column): column for column in reversed([*columns])}
    paths = {
        role: path for role, path in user_columns.items() if path is not None and role in names
    }
    used = {column for column, path in user_columns.items() if path is None}
    used |= {path for path in paths.values() if isinstance(path, str)}
    nested_tops = used_columns(user_columns.values())
    for role, options in names.items():
        if role in user_columns:
            continue
        if role == "completions":  # the user may read scores from inside the same column
            nested_tops = set()
        for name in options.split():
            matches = [column_by_name[part] for part in name.split("+") if part in column_by_name]
            if len(matches) == name.count("+") + 1 and not (used | nested_tops) & {*matches}:
                paths[role] = matches if len(matches) > 1 else matches[0]
                used.update(matches)
                break
    return paths


def path_parts(path: Path | None) -> list[str]:
    return [path] if isinstance(path, str) else path or []


def top_columns(path: Path) -> list[str]:
    """Return the columns in which a path may begin, and the path itself, since a column's name may contain dots."""
    return [top for part in path_parts(path) for top in (part, part.partition(".")[0])]


def used_columns(paths: Iterable[Path | None]) -> set[str]:
    """Return the columns in which some of several paths may begin, as `top_columns` of each."""
    return {top for path in paths if path is not None for top in top_columns(path)}


def value_at(value: Any, path: Path) -> Any:
    """Return the value at a path, or None. A key applied to a list gives a list: the key's value in each element."""
    if isinstance(path, list):
        return [value_at(value, part) for part in path]
    if isinstance(value, dict) and path in value:
        return value[path]
    head, _, tail = path.partition(".")
    value = parse_cell(value)
    if isinstance(value, list) and not head.isdecimal():
        return [value_at(item, path) for item in value]
    if isinstance(value, list):
        value = value[int(head)] if int(head) < len(value) else None
    else:
        value = value.get(head) if isinstance(value, dict) else None
    return value_at(value, tail) if tail and value is not None else value


def has_path(row: dict[str, Any], path: str) -> bool:
    """Return True if a path leads to a value, even to an empty one."""
    parent, _, step = path.rpartition(".")
    value = parse_cell(value_at(row, parent)) if parent else row
    if isinstance(value, list) and step.isdecimal():
        return int(step) < len(value)
    return path in row or step in nested_keys(value)


def parse_cell(value: Any) -> Any:
    """Return a value, decoded if it is a string with a JSON object or list, as in a cell of a CSV file."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def nested_keys(value: Any) -> list[str]:
    """Return the keys of an object, or of all objects in a list."""
    if isinstance(value := parse_cell(value), list):
        return list(
            dict.fromkeys(
                key for item in value for key in nested_keys(item) if isinstance(item, dict)
            )
        )
    return [str(key) for key in value] if isinstance(value, dict) else []


def label_word(value: Any) -> str:
    """Return a label as a lower-case word: 1, 1.0 and "1" give the same word."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower().removesuffix(".0") if value is not None else ""


@dataclass(frozen=True)
class UnreadColumns:
    """The columns that no role reads, for all rows with the same columns.
    `columns`: each column, with True if it changes what a row means. `bad`: for some columns, the values that call the
    answer bad."""

    columns: Mapping[str, bool]
    bad: Mapping[str, Collection[str]]


def list_unread(row: Mapping[str, Any], unread: UnreadColumns) -> list[str]:
    """Return the columns of a row that hold a value but are not read.
    Raise ChangesMeaning if one of these columns changes what the row means."""
    columns = []
    for column, changing in unread.columns.items():
        value = row[column]
        is_default = value == 1 and column.lower() in WEIGHTS
        if not is_empty(value) and not is_default:
            if changing:
                role = role_that_reads(column)
                raise ChangesMeaning(column, "", role, label_word(value) * (role == "label"))
            columns.append(column)
    for column, bad in unread.bad.items():
        if (value := label_word(row[column])) in bad:
            role = "label" if value in ("false", "0", "bad") else ""
            raise ChangesMeaning(
                column, f"is {row[column]!r:.40}, which calls the answer of the row bad", role
            )
    return columns


def role_that_reads(column: str) -> str:
    """Return the role that a column which changes a row's meaning could have; empty if there is none."""
    name = normal_name(column)
    if THOUGHTS.fullmatch(name):
        return "reasoning"
    for role, names in NAMES["readable"].items():
        if name in names.split():
            return str(role)
    return ""
