"""The folder that a stage fills, its curves, sample answers and warnings, and the progress bar."""

import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from stages.store.allowance import Allowance
from stages.store.blocks import Block
from stages.store.safe_files import open_regular
from stages.store.sealed_json import WRONG_SHAPE
from stages.store.thoughts import answer_behind, thought_before

log = logging.getLogger(__name__)

# a subfolder with files that are only needed for a resume, and are not published
SCRATCH = "scratch"
# its folders with work that a resume does not repeat: steps, rows, and what paid calls have cost
RESUMED = ("checkpoints", "rollouts", "shards", "spent", "calls")
CURVES, SAMPLES = "curves.jsonl", "samples.jsonl"
LOGS = (CURVES, SAMPLES)  # logs of a stage, which are not part of its result
COLUMNS = "columns.parquet"  # the user's columns, beside the table of their rows
SaveBlock = Callable[[Block[Any]], object]  # writes a block's shard


class OpenResource(AbstractContextManager["OpenResource"]):
    """One object, such as a loaded model, that a stage leaves open for the next. Its key: all it was opened with."""

    def __init__(self) -> None:
        self.key: Any = None
        self.value: Any = None

    def get(self, key: Any, open_new: Callable[[], Any]) -> Any:
        """Return the open object if it has this key. Else drop it first, and return the one that `open_new` opens."""
        if self.key != key:
            self.clear()
            self.key, self.value = key, open_new()
        return self.value

    def clear(self) -> None:
        """Drop the open object, and close it first if it can be closed."""
        value, self.key, self.value = self.value, None, None
        if close := getattr(value, "close", None):
            close()

    def __exit__(self, *_: object) -> None:
        self.clear()


class StageDir(os.PathLike[str]):
    """The folder that a stage fills (`out / "file"`), with the stage's curves and warnings. `open_resource` is what an
    earlier stage left open. `call_folder` keeps the answers of endpoints for all nodes, and `endpoint_calls` counts
    the calls of this stage for its metrics. `allowance` is the time and money that the command may still use. If
    several processes work on one node, each has a StageDir, and only the one with `is_main` writes curves, warnings and
    published files.

    If several processes divide the blocks of a stage, `divide` of their parent runs them until all blocks are done,
    and calls its last argument twice a second. There `work` gets blocks, their folder, and what writes a shard."""

    def __init__(
        self,
        path: Path,
        listener: Callable[[dict[str, Any], int], None],
        is_main: bool = True,
        open_resource: OpenResource | None = None,
        call_folder: Path | None = None,
        work: Callable[[Sequence[Block[Any]], Path, SaveBlock], object] | None = None,
        allowance: Allowance | None = None,
    ):
        self.path = path
        self.warnings = list[str]()
        self._listener = listener
        self.is_main = is_main
        self.open_resource, self.endpoint_calls = open_resource or OpenResource(), dict[str, Any]()
        self.call_folder = call_folder or path / SCRATCH / "calls"
        self.work = work
        self.allowance = allowance or Allowance()
        self.divide: Callable[[Sequence[Block[Any]], Callable[[], None]], None] | None = None
        if is_main:
            for lines in LOGS:
                cut_torn_line(self / lines)

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Append metrics to `curves.jsonl` and pass them to the tracker."""
        if not self.is_main:
            return
        point = {"step": step, **metrics}
        strict = {k: v if math.isfinite(v) else None for k, v in point.items()}  # JSON has no NaN
        with open(self / CURVES, "a", encoding="utf-8") as curves:
            curves.write(json.dumps(strict, allow_nan=False) + "\n")
        self._listener(metrics, step)

    def rewind(self, step: int) -> None:
        """Remove the points and samples after a step: a resumed training makes these again."""
        if self.is_main:
            for lines in LOGS:
                cut_later_steps(self / lines, step)

    def inform(self, message: str) -> None:
        """Print a message about the stage's work."""
        if self.is_main:
            log.info("%s", message)

    def warn(self, message: str) -> None:
        """Print a warning. It is also stored in the manifest and shown in the report."""
        if self.is_main:
            log.warning("warning: %s", message)
            self.warnings.append(message)


def read_curves(node: Path) -> list[dict[str, Any]]:
    """Return the points of `curves.jsonl` sorted by step. In nodes of earlier versions, a resume could log a step twice:
    the later point counts."""
    points: dict[tuple[int, bool], dict[str, Any]] = {}
    path = node / CURVES
    for line in path.read_bytes().splitlines() if path.exists() else []:
        if point := read_point(line):
            points[point["step"], any(k.startswith("eval_") for k in point)] = point
    return [points[key] for key in sorted(points)]


def last_values(curve: list[dict[str, Any]], *names: str) -> dict[str, float]:
    """Return the last value of each of these metrics that the curve holds."""
    return {name: point[name] for point in curve for name in names if name in point}


def read_point(line: bytes) -> dict[str, Any] | None:
    """Return the point in a line of `curves.jsonl`, or None if a kill truncated the line or it is not a point."""
    try:
        point = json.loads(line)
        return (
            {k: v for k, v in point.items() if v is not None}
            if isinstance(point["step"], int)
            else None
        )
    except WRONG_SHAPE:
        return None


def read_last_step(curves: Path) -> int | None:
    """Return the step of the last point in a file of curves; None if there is none."""
    points = (
        read_point(line)
        for line in reversed(curves.read_bytes().splitlines() if curves.exists() else [])
    )
    return next((point["step"] for point in points if point), None)


def cut_torn_line(lines: Path) -> None:
    """Remove an unfinished last line from a file of JSON lines, so that the next line does not join it."""
    if os.path.lexists(lines):
        with os.fdopen(open_regular(lines, os.O_RDWR), "r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def cut_later_steps(lines: Path, step: int) -> None:
    """Cut a file of JSON lines before its first line of a later step."""
    if not os.path.lexists(lines):
        return
    with os.fdopen(open_regular(lines, os.O_RDWR), "r+b") as file:
        end = 0
        for line in file.readlines():
            point = read_point(line)
            if point and point["step"] > step:
                break
            end += len(line)
        file.truncate(end)


@dataclass
class Sample:
    """The greedy answer to a prompt (`id`: its hash) after `step` steps. `finish_reason` is stop or length."""

    step: int
    id: str
    prompt: list[dict[str, str]]
    answer: str
    finish_reason: str

    @property
    def thought(self) -> str:
        """The thought that the answer begins with, or ''."""
        return thought_before(self.answer)

    @property
    def behind_thought(self) -> str:
        """The answer without its thought."""
        return answer_behind(self.answer)


def append_samples(node: Path, samples: Sequence[Sample]) -> None:
    """Append the answers of one evaluation."""
    lines = "".join(json.dumps(asdict(sample)) + "\n" for sample in samples)
    with open(node / SAMPLES, "a", encoding="utf-8") as file:
        file.write(lines)


def read_samples(node: Path) -> list[Sample]:
    """Return the answers sorted by step, then by prompt. In nodes of earlier versions, a resume could repeat a step: the
    later answers count."""
    path, samples = node / SAMPLES, dict[tuple[int, str], Sample]()
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(*WRONG_SHAPE):  # a kill truncated the line, or it is not a sample
            sample = Sample(**json.loads(line))
            samples[sample.step, sample.id] = sample
    return [samples[key] for key in sorted(samples)]


class Progress(AbstractContextManager["Progress"]):
    """The progress of a stage: a line of at most 80 columns on a terminal; in a log file, a line every half minute.
    The time left is computed from the mean rate, after a twentieth of the rows and ten seconds. Earlier it would be
    wrong, since the first rows wait for a whole batch."""

    COLUMNS, SECONDS, SHARE, LOGGED_EVERY = 80, 10.0, 0.05, 30.0
    current: ClassVar["Progress | None"] = None  # the one that was opened last, until it is closed

    def __init__(self, total: int, title: str, unit: str, done: int = 0):
        self.total = total
        self.title = title
        self.unit = unit
        self.done = done
        self.first_row = done
        self.note = ""
        self.started = self.last_logged = time.monotonic()
        self.terminal = self.open_bar() if sys.stderr.isatty() else None
        Progress.current = self

    def open_bar(self) -> Any:
        from tqdm import tqdm  # imported late: `--help` and a plan need no bar

        # 0: the width is unknown
        columns = min(self.COLUMNS, shutil.get_terminal_size().columns or self.COLUMNS)
        bar = tqdm(
            total=self.total,
            initial=self.done,
            ncols=columns,
            bar_format="{desc} |{bar}|",
            delay=0.01,
        )
        bar.set_description_str(self.line(), refresh=True)
        return bar

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, rows: int = 1, note: str | None = None) -> None:
        """Add finished rows. A new `note` replaces the text at the end of the line. `total` may have changed."""
        self.done += rows
        self.note = self.note if note is None else note
        if self.terminal:
            self.terminal.total = self.total
            self.terminal.set_description_str(self.line(), refresh=False)
            self.terminal.update(rows)
        elif time.monotonic() - self.last_logged >= self.LOGGED_EVERY:
            self.last_logged = time.monotonic()
            log.info("%s", self.line())

    def line(self) -> str:
        """Return the line: `sample 1,024/4,480 rows, 34/s, 1:41 left, …`."""
        total_text = f"/{self.total:,}" if self.total else ""  # empty: the total is unknown
        parts = [f"{self.title} {self.done:,}{total_text} {self.unit}s"]
        seconds, finished = time.monotonic() - self.started, self.done - self.first_row
        if finished and seconds >= 1:
            rate = finished / seconds
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
            is_enough = finished >= self.SHARE * (self.total - self.first_row)
            if seconds >= self.SECONDS and self.done < self.total and is_enough:
                parts.append(f"{clock((self.total - self.done) / rate)} left")
        return ", ".join([*parts, *([self.note] if self.note else [])])

    def close(self) -> None:
        Progress.current = None if Progress.current is self else Progress.current
        if self.terminal:
            self.terminal.set_description_str(self.line(), refresh=True)
            self.terminal.close()


def clock(seconds: float) -> str:
    """Return a duration as a clock shows it: `1:41`, `2:05:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
