"""A row of a file, and the errors of rows."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from stages.config.errors import UserError
from stages.config.override_text import override

MOST_COLUMNS = 10_000


class Way(NamedTuple):
    """A way out of an error: the settings to type, and their purpose. A key without a dot is one of the source. COLUMN
    stands for the column in which the error is."""

    settings: Mapping[str, Any]
    purpose: str = ""

    def at(self, column: str) -> "Way":
        """Return the way with the column's name for COLUMN."""
        return Way(
            {key: named(value, column) for key, value in self.settings.items()}, self.purpose
        )

    def typed(self, block: str) -> str:
        """Return what to type, for a source whose keys stand in `block`."""
        words = [
            override(key if "." in key else f"{block}.{key}", value)
            for key, value in self.settings.items()
        ]
        return " ".join([*words, self.purpose] if self.purpose else words)


def named(value: Any, column: str) -> Any:
    """Return the value of a setting with the column's name for COLUMN, also in the keys and values of a mapping."""
    if isinstance(value, str):
        return value.replace("COLUMN", column)
    if isinstance(value, Mapping):
        return {named(key, column): named(each, column) for key, each in value.items()}
    return value


LEAVE_OUT = Way({"columns": {"COLUMN": None}}, "to leave it out")


class BadRow(Exception):
    """The error of a row that cannot be used: the field, the reason, and the ways out, each of which mends it."""

    def __init__(self, field: str, reason: str, *ways: Way):
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field, self.reason, self.ways = field, reason, ways

    def at(self, column: str) -> "BadRow":
        """Return the error of the row's column instead of its role."""
        return BadRow(column, self.reason, *(way.at(column) for way in self.ways))

    def typed(self, block: str) -> "BadRow":
        """Return the error with what to type in its reason, for a source whose keys stand in `block`."""
        if not self.ways:
            return self
        return BadRow(self.field, f"{self.reason}: type {typed_ways(self.ways, block)}", *self.ways)


class Unwanted(BadRow):
    """The error of a usable row that data.audit takes out. `quarantined`: the row goes to quarantine.jsonl."""

    def __init__(self, code: str, evidence: str, quarantined: bool):
        super().__init__(code, evidence)
        self.quarantined = quarantined


def typed_ways(ways: Iterable[Way], block: str) -> str:
    """Return what to type, one way or another, for a source whose keys stand in `block`."""
    return ", or ".join(way.typed(block) for way in ways)


class NeedsSetting(UserError):
    """The error of a file that can be read with a setting of its source. Whoever knows the source's keys types it."""

    def __init__(self, problem: str, *ways: Way):
        super().__init__(problem)
        self.ways = ways

    def typed(self, block: str) -> UserError:
        """Return the error with what to type, for a source whose keys stand in `block`."""
        return UserError(f"{self}. Type {typed_ways(self.ways, block)}.")


class ChangesMeaning(UserError):
    """The error for a column that changes what a row means, but that the row's format does not read. `role`: the role
    that could read it. `value`: the row's, if a label may explain it."""

    def __init__(self, column: str, reason: str = "", role: str = "", value: str = ""):
        super().__init__(
            f"the column {column!r} {reason or 'changes what a row means, but nothing reads it'}"
        )
        self.column, self.reason, self.role, self.value = column, reason, role, value


@dataclass
class Row:
    """A row of a file: its value, and an error if it cannot be used."""

    file: str
    line: int  # the line in the file, or the number of the row if rows are no lines; from 1
    value: Any
    error: BadRow | None = None
    unit: str = "line"  # or row

    @property
    def place(self) -> str:
        """`FILE: line 3`, or `FILE: row 3`."""
        return f"{self.file}: {self.unit} {self.line}"


def first_repeated(names: Collection[str]) -> str | None:
    """Return the first name that occurs twice."""
    counts = Counter(iter(names))
    return next((name for name in names if counts[name] > 1), None)


def validate_columns(file: str, names: Collection[str]) -> None:
    """Raise UserError for more than `MOST_COLUMNS` columns, or for two columns with the same name."""
    if len(names) > MOST_COLUMNS:
        problem = f"{file}: {len(names):,} columns, but at most {MOST_COLUMNS:,} are allowed"
        raise UserError(
            f"{problem}. No setting reads it: write one row for each text. Rows and columns may be swapped here."
        )
    if twice := first_repeated(names):
        raise UserError(
            f"{file}: the column name {twice!r} occurs twice, and no setting tells them apart. Rename one of the columns."
        )
