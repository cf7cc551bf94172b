"""Where the marks of a chart of pass rates against KL stand, in shares of its width and height: the page draws them at
any width, with text that keeps its size."""

import math
from dataclasses import dataclass
from itertools import pairwise

TICKS = 4  # intervals between ticks, about


@dataclass
class Point:
    """A model: its KL from SFT, its pass rate with an interval, and whether it is SFT."""

    kl: float
    rate: float
    low: float
    high: float
    start: bool


@dataclass
class Mark:
    """In percent of the chart: right of its left end, and below its upper end. `numbers` are rows of the table."""

    x: float
    y: float
    upper: float
    lower: float
    start: bool
    front: bool
    numbers: str


@dataclass
class Scatter:
    marks: list[Mark]
    across: list[tuple[float, str]]  # ticks: where, and what they say
    down: list[tuple[float, str]]
    front: list[tuple[Mark, Mark]]  # neighbours on the front


def scatter(points: list[Point], front: list[bool]) -> Scatter:
    """Models as the table has them. Those with the same rate and KL share a mark."""
    across = ticks(0.0, max(p.kl for p in points))
    down = ticks(min(p.low for p in points), max(p.high for p in points))
    marks: dict[tuple[float, float, bool], Mark] = {}
    for number, (p, best) in enumerate(zip(points, front, strict=True), 1):
        x, (y, upper, lower) = share(p.kl, across), (100 - share(rate, down) for rate in (p.rate, p.high, p.low))
        place = round(x, 1), round(y, 1), p.start
        if place in marks:
            marks[place].numbers += f", {number}"
        else:
            marks[place] = Mark(x, y, upper, lower, p.start, best, str(number))
    best_first = sorted((m for m in marks.values() if m.front), key=lambda m: m.x)
    return Scatter(
        sorted(marks.values(), key=lambda m: m.start),  # SFT on top: settings close to it would hide it
        [(share(tick, across), f"{tick:g}") for tick in across],
        [(100 - share(tick, down), f"{100 * tick:g}%") for tick in down],
        [*pairwise(best_first)],
    )


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that reach around both, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / TICKS or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{step * i:.12g}") for i in range(first, max(last, first + 1) + 1)]


def share(value: float, across: list[float]) -> float:
    """Where a value stands between the first and the last tick, in percent."""
    return 100 * (value - across[0]) / (across[-1] - across[0])
