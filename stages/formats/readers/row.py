"""A row of a file, and the errors of rows."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from stages.config.errors import UserError

MOST_COLUMNS = 10_000


class BadRow(Exception):
    """The error of a row that cannot be used: the field, and the reason."""

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field, self.reason = field, reason


class Unwanted(BadRow):
    """The error of a usable row that data.audit takes out. `quarantined`: the row goes to quarantine.jsonl."""

    def __init__(self, code: str, evidence: str, quarantined: bool):
        super().__init__(code, evidence)
        self.quarantined = quarantined


class ChangesMeaning(UserError):
    """The error for a column that changes what a row means, but that the row's format does not read."""

    def __init__(self, column: str, reason: str = "", role: str = ""):
        super().__init__(
            f"the column {column!r} {reason or 'changes what a row means, but nothing reads it'}"
        )
        self.column, self.reason, self.role = column, reason, role if reason else "ROLE"


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
            f"{problem}. Write one row for each text; rows and columns may be swapped here."
        )
    if twice := first_repeated(names):
        raise UserError(
            f"{file}: the column name {twice!r} occurs twice. Rename one of the columns."
        )
