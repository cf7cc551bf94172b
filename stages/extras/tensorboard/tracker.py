"""The tracker `tracker=tensorboard`: event files in `outputs/cache/tensorboard`, in a folder a project, group and run.
`tensorboard --logdir outputs/cache/tensorboard` shows them."""

import re
import shlex
from pathlib import Path
from typing import Any

from stages.config.blocks.processes import Tracker
from stages.tracking.tables import Table
from stages.tracking.tracker import Attempt, Run, flat, numbers


class TensorBoardRun(Run):
    """A run of TensorBoard. Tables are texts in Markdown."""

    def __init__(self, attempt: Attempt, files: Path, settings: Tracker):
        from torch.utils.tensorboard import SummaryWriter

        folder = files / attempt.project / attempt.group / attempt.id
        self.files = files
        self.writer: Any = SummaryWriter(str(folder))
        self.show({"config": as_table(attempt.config)})

    def opening(self) -> str:
        return f"TensorBoard shows the runs: tensorboard --logdir {shlex.quote(str(self.files))}"

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def summarize(self, figures: dict[str, Any]) -> None:
        self.log(numbers(figures), 0)
        self.show({"summary": as_table(figures)})

    def show(self, tables: dict[str, Table]) -> None:
        for name, (columns, rows) in tables.items():
            lines = [columns, ["---"] * len(columns), *(map(literal, row) for row in rows)]
            self.writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines))

    def finish(self, failed: bool) -> None:
        self.writer.close()


def as_table(values: dict[str, Any]) -> Table:
    return ["key", "value"], [[key, value] for key, value in flat(values).items()]


def literal(cell: Any) -> str:
    """Return a cell whose signs and line breaks mean nothing in Markdown and HTML: `&#42;` is shown as `*`."""
    return re.sub(r"[!-/:-@\[-`{-~\n\r]", lambda sign: f"&#{ord(sign[0])};", str(cell))
