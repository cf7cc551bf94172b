"""A row of a file as it was read."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from stages.config.errors import UserError

MOST_COLUMNS = 10_000


class BadRow(Exception):
    """Why a row cannot be used, and which field is to blame."""

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field, self.reason = field, reason


class Unwanted(BadRow):
    """Why a row that can be used is taken out all the same. `kept`: it goes to the quarantine, to be looked at."""

    def __init__(self, code: str, evidence: str, quarantined: bool):
        super().__init__(code, evidence)
        self.quarantined = quarantined


@dataclass
class Row:
    """A row as it was read: its value, or with `error` why it cannot be used."""

    file: str
    line: int  # of the file where it has lines, else the row's number; both from 1
    value: Any
    error: BadRow | None = None


def first_repeated(names: Collection[str]) -> str | None:
    """Return the first name that occurs twice."""
    counts = Counter(iter(names))
    return next((name for name in names if counts[name] > 1), None)


def validate_columns(file: str, names: Collection[str]) -> None:
    """Raise UserError for columns that are too many for a table of texts, or of which two have one name."""
    if len(names) > MOST_COLUMNS:
        raise UserError(
            f"{file}: {len(names):,} columns, and a table of texts has {MOST_COLUMNS:,} at most. Write a row for each "
            "text: rows may stand as columns here."
        )
    if twice := first_repeated(names):
        raise UserError(f"{file}: the column {twice!r} is there twice. Rename one.")
