"""The result of a command or a run: its fields are what `--json` writes, and `show` prints them as text."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WIDTH_IN_FILES = 160  # columns of what is printed to a file or a pipe


@dataclass
class Result:
    """The base class of results. Fields hold plain values, lists, dicts and dataclasses of these."""

    def as_plain(self) -> dict[str, Any]:
        """Return the result as plain values by key."""
        return asdict(self)

    def show(self) -> None:
        """Print the result as text."""

    def end_with_exit_code(self) -> None:
        """End the command with its exit code, by an error or a SystemExit. Without either, it is 0."""


@dataclass
class Reply:
    """The object of `--json`. `error`: what is wrong, and what to type."""

    stage: str
    exit_code: int = 0
    error: str | None = None
    result: Result | None = None

    def as_plain(self) -> dict[str, Any]:
        """Return the reply as plain values by key."""
        result = self.result.as_plain() if self.result else None
        return {**vars(self), "result": result}


def new_table(*text_columns: str, numbers: Iterable[str] = (), title: str | None = None) -> "Table":
    """Return a table without lines. The columns of `numbers` come last, and are as wide as their cells."""
    from rich.table import Table  # imported here, as help needs none

    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in text_columns:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def print_parts(*parts: "RenderableType") -> None:
    """Print tables and lines, as wide as the terminal, or 160 columns in a file or a pipe."""
    from rich.console import Console  # imported here, as help needs none

    is_terminal = os.isatty(1)
    Console(width=None if is_terminal else WIDTH_IN_FILES, markup=False).print(*parts, sep="\n")


def null_for_nan(value: Any) -> Any:
    """Return a value as JSON can hold it: with None for numbers that are not finite, and texts for other objects."""
    text = json.dumps(value, default=str)
    return json.loads(text, parse_constant=lambda nan_or_infinity: None)
