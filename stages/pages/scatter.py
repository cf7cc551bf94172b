"""The chart of pass rates against KL, with positions in percent, so that text keeps its size at any width."""

import math
from dataclasses import dataclass
from itertools import pairwise

TICKS = 4  # approximate number of intervals between ticks
NEAR_X, NEAR_Y = 10.0, 7.0  # smallest distance in percent between two marks with separate labels


@dataclass
class Point:
    """A model: its KL from SFT, and its pass rate with an interval."""

    kl: float
    rate: float
    low: float
    high: float
    is_sft: bool


@dataclass
class Mark:
    """A mark at (x, y) percent from the chart's upper left corner; `upper` and `lower` end its interval. `numbers`:
    its rows in the table. If marks are close together, one of them has the numbers of all."""

    x: float
    y: float
    upper: float
    lower: float
    is_sft: bool
    front: bool
    numbers: str


@dataclass
class Scatter:
    marks: list[Mark]
    across: list[tuple[float, str]]  # position and label of each tick
    down: list[tuple[float, str]]
    front: list[tuple[Mark, Mark]]  # neighbouring marks on the Pareto front


def scatter(points: list[Point], front: list[bool]) -> Scatter:
    """Build the chart of the table's models; `front`: which models are on the Pareto front."""
    across = ticks(0.0, max(p.kl for p in points))
    down = ticks(min(p.low for p in points), max(p.high for p in points))
    marks, labels = list[Mark](), dict[int, list[int]]()
    for number, (p, best) in enumerate(zip(points, front, strict=True), 1):
        x, (y, upper, lower) = share(p.kl, across), (100 - share(rate, down) for rate in (p.rate, p.high, p.low))
        near = next((i for i in labels if abs(marks[i].x - x) < NEAR_X and abs(marks[i].y - y) < NEAR_Y), len(marks))
        labels.setdefault(near, []).append(number)
        marks.append(Mark(x, y, upper, lower, p.is_sft, best, ""))
    for i, numbers in labels.items():
        marks[i].numbers = ", ".join(map(str, numbers))
    along = sorted(marks, key=lambda m: m.x)
    best_first = [mark for mark in along if mark.front]
    return Scatter(
        sorted(along, key=lambda m: m.is_sft),  # SFT is drawn last, so that no setting hides it
        [(share(tick, across), f"{tick:g}") for tick in across],
        [(100 - share(tick, down), f"{100 * tick:g}%") for tick in down],
        [*pairwise(best_first)],
    )


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers that enclose both values, spaced by 1, 2 or 5 times a power of ten."""
    rough = (high - low) / TICKS or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{step * i:.12g}") for i in range(first, max(last, first + 1) + 1)]


def share(value: float, across: list[float]) -> float:
    """Return a value's position between the first and the last tick, in percent."""
    return 100 * (value - across[0]) / (across[-1] - across[0])
