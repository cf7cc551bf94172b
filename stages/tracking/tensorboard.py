"""The tracker `tracker=tensorboard`: event files in `outputs/cache/tensorboard`, in a folder a project, group and run.
`tensorboard --logdir outputs/cache/tensorboard` shows them."""

import time
from pathlib import Path
from typing import Any

from stages.config.schema import Tracker
from stages.tracking.tables import Table
from stages.tracking.tracker import Attempt, Run, flat, numbers


class TensorBoardRun(Run):
    """A run of TensorBoard, written with its own package: PyTorch's writer would load PyTorch for every stage."""

    def __init__(self, attempt: Attempt, files: Path, settings: Tracker):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = files / attempt.project / attempt.group / attempt.id
        self.writer = EventFileWriter(str(folder))
        self.show({"config": as_table(attempt.config)})

    def log(self, metrics: dict[str, float], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.write(step, [Summary.Value(tag=k, simple_value=v) for k, v in metrics.items()])

    def summarize(self, figures: dict[str, Any]) -> None:
        self.log(numbers(figures), 0)
        self.show({"summary": as_table(figures)})

    def show(self, tables: dict[str, Table]) -> None:
        """Log each table as a tensor of strings with two dimensions, which TensorBoard shows as a table."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        metadata = create_summary_metadata(display_name="", description="")
        for name, (columns, rows) in tables.items():
            cells = [[str(cell) for cell in row] for row in [columns, *rows]]
            value = Summary.Value(tag=name, metadata=metadata, tensor=make_tensor_proto(cells))
            self.write(0, [value])

    def write(self, step: int, values: list[Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self.writer.add_event(event)

    def finish(self, failed: bool) -> None:
        self.writer.close()


def as_table(values: dict[str, Any]) -> Table:
    return ["key", "value"], [[key, value] for key, value in flat(values).items()]
