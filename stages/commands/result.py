"""The result of a command or a run: its fields are what `--json` writes, and `show` prints them as text."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


@dataclass
class Result:
    """The base class of results. Fields hold plain values, lists, dicts and dataclasses of these."""

    def show(self) -> None:
        """Print the result as text."""

    def end(self) -> None:
        """Raise the error or the SystemExit that the command ends with, if its exit code is not 0."""


@dataclass
class Reply:
    """The object of `--json`. `error`: what is wrong, and what to type."""

    stage: str
    exit_code: int = 0
    error: str | None = None
    result: Result | None = None


def new_table(*columns: str, numbers: Iterable[str] = (), title: str | None = None) -> "Table":
    """Return a table without lines. The columns of `numbers` come last, and are as wide as their cells."""
    from rich.table import Table  # imported here, as help needs none

    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def print_parts(*parts: "RenderableType") -> None:
    """Print tables and lines, as wide as the terminal, or 160 columns in a file or a pipe."""
    from rich.console import Console  # imported here, as help needs none

    Console(width=None if os.isatty(1) else 160, markup=False).print(*parts, sep="\n")


def finite(value: Any) -> Any:
    """Return a value as JSON can hold it: with null for numbers that are not finite."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
