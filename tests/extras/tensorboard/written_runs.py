"""Read a run of TensorBoard back from its event files."""

import html
from pathlib import Path

from tests.tracking.tracked_run import Cells, TrackedRun, curves_of


def read_run(root: Path, run: str) -> TrackedRun:
    """Return what TensorBoard has of a run in a store."""
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

    (folder,) = root.glob(f"cache/tensorboard/plumbline/*/{run}")
    read = EventAccumulator(str(folder), size_guidance={TENSORS: 0}).Reload()
    names = read.Tags()
    points = [
        (point.step, name, point.value) for name in names["scalars"] for point in read.Scalars(name)
    ]
    tables = dict[str, Cells]()
    for name in {*names["tensors"]} - {"config/text_summary", "summary/text_summary"}:
        (event,) = read.Tensors(name)
        (text,) = event.tensor_proto.string_val
        rows = Cells()
        for line in text.decode().split("\n")[2:]:
            rows.append([html.unescape(cell) for cell in line[2:-2].split(" | ")])
        tables[name.removesuffix("/text_summary")] = rows
    return TrackedRun(curves_of(points), tables, folder.parent.name)
