"""Charts of textless SVG marks, placed in percent of their width, so that text keeps its size on a phone.

The main chart is a table: for every kind of task the paired difference policy − SFT with its interval, one mark per
row. The other one shows pass rates against KL."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from stages.evaluation.intervals import Interval
from stages.pages.glossary import TEXTS, in_words
from stages.pages.headline import counted

NAMED = 3  # most tasks named in a sentence
TITLES: dict[str, str] = TEXTS["sides"]
TICKS = 4  # approximate number of intervals between ticks
NEAR_X, NEAR_Y = 10.0, 7.0  # smallest distance in percent between two marks with separate labels


def chart(results: dict[str, Any], by: str, trained: str = "it") -> dict[str, Any]:
    """Return the scale's `end` in points and, by side, the rows from most gained to most lost, in percent of the
    track. `by`: kinds or tasks. `trained`: the model trained on tasks like the seen ones, or `nothing here`."""
    sides, main = results[by], results["main_difference"]
    rows = [row[main] for kinds in sides.values() for row in kinds.values()]
    widest = max(max(abs(row["low"]), abs(row["high"])) for row in rows)
    end = next(end for end in (0.1, 0.2, 0.3, 0.5, 0.75, 1) if end >= min(widest, 1))

    def place(difference: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, difference / end)), 2)

    def drawn(name: str, row: dict[str, Any]) -> dict[str, Any]:
        delta = row[main]
        places = {f"at_{which}": place(delta[which]) for which in ("low", "mean", "high")}
        return {**row, "name": in_words(name), "delta": delta, **places}

    rows_by_side = dict[str, list[dict[str, Any]]]()
    for side, kinds in sides.items():
        title = TITLES["untaught" if trained == "nothing here" and side == "seen" else side]
        marks = [drawn(name, row) for name, row in kinds.items()]
        rows_by_side[title] = sorted(marks, key=lambda row: (-row["delta"]["mean"], row["name"]))
    return {"end": round(100 * end), "sides": rows_by_side}


def conclusion(results: dict[str, Any]) -> str:
    """Count for each side the kinds whose intervals exclude 0."""
    sentences, main = [], results["main_difference"]
    for side, kinds in results["kinds"].items():
        better = sum(row[main]["low"] > 0 for row in kinds.values())
        worse = sum(row[main]["high"] < 0 for row in kinds.values())
        sentences.append(f"Of {counted(len(kinds), 'kind')} of {side} tasks: better on {better}, worse on {worse}.")
    return f"{' '.join(sentences)} The other intervals contain 0; among this many, a few exclude 0 by chance."


def single_tasks(results: dict[str, Any]) -> str:
    """Name the single tasks whose intervals exclude 0, and count the unseen tasks on which neither model passes."""
    sides, main, before = results["tasks"], results["main_difference"], results["before"]
    rows = [(name, row, Interval(**row[main])) for tasks in sides.values() for name, row in tasks.items()]
    clauses = []
    for word, clear in (("better", [r for r in rows if r[2].low > 0]), ("worse", [r for r in rows if r[2].high < 0])):
        if clear:
            most = sorted(clear, key=lambda r: -abs(r[2].mean))[:NAMED]
            rates = [
                (in_words(name), row[before]["mean"], row["policy"]["mean"], row["prompts"]) for name, row, _ in most
            ]
            listed = ", ".join(f"“{name}” ({old:.0%} → {new:.0%} of {count})" for name, old, new, count in rates)
            more = f" and {len(clear) - NAMED} more" if len(clear) > NAMED else ""
            clauses.append(f"{word} on {listed}{more}")
    sentences = [f"Single tasks, of {len(rows)}: {'; '.join(clauses)}."] if clauses else []
    unseen = list(sides.get("unseen", {}).values())
    if never := sum(row[before]["mean"] == row["policy"]["mean"] == 0 for row in unseen):
        sentences.append(f"On {never} of {counted(len(unseen), 'unseen task')} neither model passes any prompt.")
    return " ".join(sentences)


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
