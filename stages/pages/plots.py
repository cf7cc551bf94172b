"""Charts as places in percent of their box: marks scale with the page, and their labels are text of the page.

The macros of `charts.html.jinja` draw them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from stages.evaluation.intervals import Interval
from stages.pages.environment import write_short
from stages.pages.objectives import objective_of

Curve = list[dict[str, Any]]
MOST_TICKS = 4
MOST_MARKS = 40  # of a line, that show their number


@dataclass(frozen=True)
class Axis:
    """An axis of numbers from `low` to `high`, with ticks at round numbers."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Iterable[float]) -> "Axis":
        """Return the axis that holds all these values, and ends at ticks."""
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        if low == high:
            low, high = low - abs(low or 1) / 2, high + abs(high or 1) / 2
        step = round_step((high - low) / MOST_TICKS)
        first, last = math.floor(low / step), math.ceil(high / step)
        ticks = tuple(i * step for i in range(first, last + 1))
        return cls(ticks[0], ticks[-1], ticks)

    def place(self, value: float) -> float:
        """Return a value's place, in percent of the axis."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def round_step(least: float) -> float:
    """Return the smallest of 1, 2, 2.5 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= least * 0.999)


class Mark(NamedTuple):
    """A point of a line: its place in percent, from the left and from the top, and its numbers."""

    left: float
    top: float
    step: float
    value: float


@dataclass(frozen=True)
class Line:
    """A series of a chart; `look`: the model whose colour it has. Others than the first are dashed."""

    title: str
    look: str
    dashed: bool
    marks: list[Mark]

    @property
    def shown(self) -> list[Mark]:
        """The marks that show their number: at most MOST_MARKS, the last one always."""
        every = math.ceil(len(self.marks) / MOST_MARKS)
        return self.marks[::-1][::every][::-1]

    def at(self, step: float) -> float | None:
        """Return the value at a step; None if it was not measured there."""
        return next((mark.value for mark in self.marks if mark.step == step), None)


@dataclass(frozen=True)
class LineChart:
    """One or more series over steps."""

    title: str
    caption: str
    unit: str
    x: Axis
    y: Axis
    lines: list[Line]

    @property
    def steps(self) -> list[float]:
        """The steps whose numbers the table has."""
        return sorted({mark.step for line in self.lines for mark in line.shown})

    @property
    def description(self) -> str:
        """What a screen reader says of the chart."""
        ends = [
            f"{line.title} from {write_short(line.marks[0].value)} to {write_short(line.marks[-1].value)}"
            for line in self.lines
        ]
        return f"{self.title}: {'; '.join(ends)}"


def line_chart(
    title: str, curve: Curve, series: dict[str, str], caption: str, unit: str, look: str
) -> LineChart | None:
    """Return the chart of metrics over steps, with `series` their labels; None if nothing was measured."""
    measured = {
        label: [(float(p["step"]), float(p[metric])) for p in curve if metric in p]
        for metric, label in series.items()
    }
    measured = {label: points for label, points in measured.items() if points}
    if not measured:
        return None
    points = [point for line in measured.values() for point in line]
    x, y = Axis.over(step for step, _ in points), Axis.over(value for _, value in points)
    lines = [
        Line(
            label,
            look,
            number > 0,
            [Mark(x.place(step), 100 - y.place(value), step, value) for step, value in line],
        )
        for number, (label, line) in enumerate(measured.items())
    ]
    return LineChart(title, caption, unit, x, y, lines)


def panels(stage: str) -> dict[str, dict[str, Any]]:
    """Return by their title the caption, unit and metrics of a training stage's charts; {} for a stage that has none."""
    charts: dict[str, dict[str, Any]] = objective_of(stage).get("panels", {})
    return charts


def training(stage: str, title: str, curve: Curve) -> list[LineChart]:
    """Return the charts of a stage that trains a language model."""
    look = "sft" if stage == "sft" else "policy"
    charts = [
        line_chart(
            f"{title}: {name}", curve, panel["series"], panel["caption"], panel["unit"], look
        )
        for name, panel in panels(stage).items()
    ]
    return [chart for chart in charts if chart]


class Point(NamedTuple):
    """A model: its KL from SFT, its pass rate, and whether no other model has a higher rate at this KL or less."""

    kl: float
    rate: Interval
    is_sft: bool
    is_best: bool


def frontier(points: Sequence[Point]) -> dict[str, Any]:
    """Return the chart of pass rates with their intervals against KL: its axes, and each point's places in percent."""
    x = Axis.over([0.0, *(point.kl for point in points)])
    y = Axis.over([bound for point in points for bound in (point.rate.low, point.rate.high)])
    marks = [
        {
            "number": number,
            "left": x.place(point.kl),
            "top": 100 - y.place(point.rate.mean),
            "low": 100 - y.place(point.rate.low),
            "high": 100 - y.place(point.rate.high),
            "look": "sft" if point.is_sft else "policy",
            "filled": point.is_sft or point.is_best,
            "text": f"{point.rate.share()} at KL {write_short(point.kl)}",
        }
        for number, point in enumerate(points, 1)
    ]
    return {"x": x, "y": y, "marks": marks}


class Bar(NamedTuple):
    """A bar of a histogram: its range in words, its count, and its height in percent of the highest."""

    name: str
    number: int
    height: float


def histogram(values: Sequence[float], bounds: Sequence[float]) -> list[Bar]:
    """Return the bars of how many values lie from each bound to below the next one, the last without an end."""
    ranges = list(zip(bounds, [*bounds[1:], math.inf], strict=True))
    counts = [sum(low <= value < high for value in values) for low, high in ranges]
    names = [
        f"{low:g}"
        if high - low <= 1
        else f"{low:g}+"
        if math.isinf(high)
        else f"{low:g}–{high - 1:g}"
        for low, high in ranges
    ]
    return bars(names, counts)


def bars(names: Sequence[str], counts: Sequence[int]) -> list[Bar]:
    """Return a bar for each name with its count."""
    most = max([*counts, 1])
    return [
        Bar(name, count, round(100 * count / most, 1))
        for name, count in zip(names, counts, strict=True)
    ]
