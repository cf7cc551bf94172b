"""The result of a command or a run: its fields are what `--json` writes, and `show` prints them as text."""

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


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


def print_parts(*parts: "RenderableType") -> None:
    """Print tables and lines, as wide as the terminal, or 160 columns in a file or a pipe."""
    from rich.console import Console  # imported here, as help needs none

    Console(width=None if os.isatty(1) else 160, markup=False).print(*parts, sep="\n")


def finite(value: Any) -> Any:
    """Return a value as JSON can hold it: with null for numbers that are not finite."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
