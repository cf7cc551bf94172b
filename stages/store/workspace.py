"""The folder that a stage fills, with its curves and warnings, and the bar that shows how far it is."""

import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.store.safe_files import open_regular

log = logging.getLogger(__name__)

SCRATCH = "scratch"  # inside the folder: what serves a resume only and is not published
CURVES, SAMPLES = "curves.jsonl", "samples.jsonl"
LOGS = (CURVES, SAMPLES)  # what a stage tells of itself on its way: no product of it


class OpenResource:
    """What a stage leaves open for the next one in this process: one thing, under all that it was opened with."""

    def __init__(self) -> None:
        self.key: Any = None
        self.value: Any = None

    def get(self, key: Any, open_new: Callable[[], Any]) -> Any:
        """What is kept under this key; where that is something else, it goes before `make` opens this."""
        if self.key != key:
            self.clear()
            self.key, self.value = key, open_new()
        return self.value

    def clear(self) -> None:
        self.key = self.value = None


class StageDir(os.PathLike[str]):
    """The folder a stage works in: `out / "file"`, plus the log of its curves and its warnings, and what an earlier
    stage left open.

    `calls` is where answers of endpoints are kept, for all nodes; `asked` is what they came to, for a stage's metrics.

    Where several processes work on one node, each has a Work. One of them is `main`: only that one writes curves and
    warnings, and what the stage publishes.
    """

    def __init__(
        self,
        path: Path,
        listener: Callable[[dict[str, Any], int], None],
        is_main: bool = True,
        open_resource: OpenResource | None = None,
        call_folder: Path | None = None,
    ):
        self.path, self.warnings, self._listener, self.main = path, list[str](), listener, is_main
        self.open_resource, self.call_folder, self.endpoint_calls = (
            open_resource or OpenResource(),
            call_folder or path / SCRATCH / "calls",
            dict[str, Any](),
        )
        if is_main:
            for lines in LOGS:
                cut_torn_line(self / lines)

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Append metrics to `curves.jsonl` and hand them to the tracker. After a resume a step may come again."""
        if not self.main:
            return
        point = {"step": step, **metrics}
        strict = {k: v if math.isfinite(v) else None for k, v in point.items()}  # JSON knows no NaN
        with open(self / CURVES, "a", encoding="utf-8") as curves:
            curves.write(json.dumps(strict, allow_nan=False) + "\n")
        self._listener(metrics, step)

    def inform(self, message: str) -> None:
        """Tell the user what was done."""
        if self.main:
            log.info("%s", message)

    def warn(self, message: str) -> None:
        """Say something the user should know; it also goes into the manifest and the report."""
        if self.main:
            log.warning("warning: %s", message)
            self.warnings.append(message)


def read_curves(node: Path) -> list[dict[str, Any]]:
    """The points of `curves.jsonl` by step; where a resume logged a step again, the later point counts."""
    points: dict[tuple[int, bool], dict[str, Any]] = {}
    path = node / CURVES
    for line in path.read_bytes().splitlines() if path.exists() else []:
        if point := read_point(line):
            points[point["step"], any(k.startswith("eval_") for k in point)] = point
    return [points[key] for key in sorted(points)]


def last_values(curve: list[dict[str, Any]], *names: str) -> dict[str, float]:
    """The last value of each metric that the curve holds."""
    return {name: point[name] for point in curve for name in names if name in point}


def read_point(line: bytes) -> dict[str, Any] | None:
    """A line of `curves.jsonl`; None for one that is empty, that a kill cut off, or that is no point."""
    try:
        point = json.loads(line)
        return {k: v for k, v in point.items() if v is not None} if isinstance(point["step"], int) else None
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def cut_torn_line(lines: Path) -> None:
    """Cut off the end of a file in JSON lines that an attempt left unfinished: it would tear the next line, too."""
    if os.path.lexists(lines):
        with os.fdopen(open_regular(lines, os.O_RDWR), "r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


class Progress:
    """How far a stage is: one line of at most 80 columns on a terminal, in a log file a line every half minute.

    Time remaining is told from the mean rate so far, once a twentieth is done and ten seconds have passed: before that
    the first rows, which wait for a whole batch, would speak for all.
    """

    COLUMNS, SECONDS, SHARE, LOGGED_EVERY = 80, 10.0, 0.05, 30.0

    def __init__(self, total: int, title: str, unit: str, done: int = 0):
        self.total, self.title, self.unit, self.done, self.first_row = total, title, unit, done, done
        self.note = ""
        self.started = self.last_logged = time.monotonic()
        self.terminal = self.open_bar() if sys.stderr.isatty() else None

    def open_bar(self) -> Any:
        from tqdm import tqdm  # not for `--help` or a plan

        columns = min(self.COLUMNS, shutil.get_terminal_size().columns or self.COLUMNS)  # 0: nobody knows
        bar = tqdm(total=self.total, initial=self.done, ncols=columns, bar_format="{desc} |{bar}|", delay=0.01)
        bar.set_description_str(self.line(), refresh=True)
        return bar

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, rows: int = 1, note: str | None = None) -> None:
        """So many more are done; `note` stands at the end of the line from now on."""
        self.done += rows
        self.note = self.note if note is None else note
        if self.terminal:
            self.terminal.set_description_str(self.line(), refresh=False)
            self.terminal.update(rows)
        elif time.monotonic() - self.last_logged >= self.LOGGED_EVERY:
            self.last_logged = time.monotonic()
            log.info("%s", self.line())

    def set_total(self, total: int) -> None:
        """So many there will be, as far as one can tell now."""
        self.total = total
        if self.terminal:
            self.terminal.total = total

    def line(self) -> str:
        """`sample 1,024/4,480 rows, 34/s, 1:41 left, …`"""
        total_text = f"/{self.total:,}" if self.total else ""  # else nobody knows how many
        parts = [f"{self.title} {self.done:,}{total_text} {self.unit}s"]
        seconds, finished = time.monotonic() - self.started, self.done - self.first_row
        if finished and seconds >= 1:
            rate = finished / seconds
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
            if (
                seconds >= self.SECONDS
                and self.done < self.total
                and finished >= self.SHARE * (self.total - self.first_row)
            ):
                parts.append(f"{clock((self.total - self.done) / rate)} left")
        return ", ".join([*parts, *([self.note] if self.note else [])])

    def close(self) -> None:
        if self.terminal:
            self.terminal.set_description_str(self.line(), refresh=True)
            self.terminal.close()


def clock(seconds: float) -> str:
    """`1:41`, `2:05:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
