"""The folder that a stage fills, with its curves and warnings, and the bar that shows how far it is."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)

SCRATCH = "scratch"  # inside the folder: what serves a resume only and is not published


class Work(os.PathLike[str]):
    """The folder a stage works in: `out / "file"`, plus the log of its curves and its warnings.

    Where several processes work on one node, each has such an object and one of them is `main`: it alone publishes.
    """

    def __init__(self, path: Path, listener: Callable[[dict[str, Any], int], None], main: bool = True):
        self.path, self.warnings, self._listener, self.main = path, list[str](), listener, main

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Append metrics to `curves.jsonl` and hand them to the tracker. After a resume a step may come again."""
        if not self.main:
            return
        with open(self / "curves.jsonl", "a") as curves:
            curves.write("\n" + json.dumps({"step": step, **metrics}))  # a line cut off by a kill stays alone
        self._listener(metrics, step)

    def warn(self, message: str) -> None:
        """Say something the user should know; it also goes into the manifest and the report."""
        if self.main:
            log.warning("warning: %s", message)
            self.warnings.append(message)


def read_curves(node: Path) -> list[dict[str, Any]]:
    """The points of `curves.jsonl` by step; where a resume logged a step again, the later point counts."""
    points: dict[tuple[int, bool], dict[str, Any]] = {}
    path = node / "curves.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # an empty line, or one that a kill cut off
            point = json.loads(line)
            points[point["step"], any(k.startswith("eval_") for k in point)] = point
    return [points[key] for key in sorted(points)]


def bar(total: int, title: str, unit: str, done: int = 0) -> "tqdm[Any]":
    """A bar on stderr; in a log file, a line every half minute."""
    watched = sys.stderr.isatty()
    return tqdm(
        total=total, initial=done, desc=title, unit=unit, dynamic_ncols=watched, mininterval=0.2 if watched else 30
    )
