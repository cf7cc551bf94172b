"""The wordings of task families and of constraints: `ordering.yaml` has those of `ordering.py`, by function."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml


def wordings_of(function: Callable[..., Any], line_break: str) -> tuple[str, ...]:
    """Return the wordings of a function from the YAML file beside its module."""
    return split_wordings(read_wordings(str(sys.modules[function.__module__].__file__))[function.__name__], line_break)


@cache
def read_wordings(module: str) -> dict[str, str]:
    return yaml.safe_load(Path(module).with_suffix(".yaml").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def split_wordings(text: str, line_break: str) -> tuple[str, ...]:
    """Return one wording per line of a text, in which " | " stands for a line break."""
    return tuple(line.strip().replace(" | ", line_break) for line in text.strip().splitlines())
