"""What a tracker has of a run, as its own files say."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Curves = dict[str, dict[int, float]]  # the values of a metric by step
Cells = list[list[str]]


@dataclass
class TrackedRun:
    """The curves, the cells of each table, and the group."""

    curves: Curves
    tables: dict[str, Cells]
    group: str


def as_cells(rows: Any) -> Cells:
    return [[str(cell) for cell in row] for row in rows]


def curves_of(points: Iterable[tuple[int, str, Any]]) -> Curves:
    """Return the curves among points, without the figures at the end."""
    curves = Curves()
    for step, name, value in points:
        if not name.startswith("summary/"):
            curves.setdefault(name, {})[step] = value
    return curves
