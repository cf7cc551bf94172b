"""A row of a file as it was read."""

from dataclasses import dataclass
from typing import Any


class BadRow(Exception):
    """Why a row cannot be used, and which field is to blame."""

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field, self.reason = field, reason


class Unwanted(BadRow):
    """Why a row that can be used is taken out all the same. `kept`: it goes to the quarantine, to be looked at."""

    def __init__(self, code: str, found: str, kept: bool):
        super().__init__(code, found)
        self.kept = kept


@dataclass
class Row:
    """A row as it was read: its value, or with `error` why it cannot be used."""

    file: str
    line: int  # of the file where it has lines, else the row's number; both from 1
    value: Any
    error: BadRow | None = None
