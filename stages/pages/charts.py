"""The chart of changes by kind of task, and its conclusion.

It is a table with a mark per row: the paired difference policy − SFT with its interval. The marks are placed in
percent of their width, so that text keeps its size on a phone."""

from collections import Counter
from typing import NamedTuple

from stages.evaluation import claims
from stages.evaluation.intervals import Interval
from stages.evaluation.results import Results, Row
from stages.pages.glossary import TEXTS, in_words
from stages.pages.headline import counted

TITLES: dict[str, str] = TEXTS["sides"]


class Mark(NamedTuple):
    """A row of the chart: the kind's name, its rates and main difference, and the places of the difference and its
    bounds."""

    name: str
    row: Row
    delta: Interval
    at_low: float
    at_mean: float
    at_high: float


class Chart(NamedTuple):
    """The scale's `end` in points and, by side, the rows from most gained to most lost, in percent of the track."""

    end: int
    sides: dict[str, list[Mark]]

    def side(self, title: str) -> "Chart":
        """Return the chart of one side."""
        return Chart(self.end, {title: self.sides[title]})


def chart(results: Results, by: str, trained: str = "it") -> Chart:
    """Return the chart of changes. `by`: kinds or tasks. `trained`: the model trained on tasks like the seen ones, or
    `nothing here`."""
    sides = results.kinds if by == "kinds" else results.tasks
    main = results.main_difference
    rows = [row[main] for kinds in sides.values() for row in kinds.values()]
    widest = max(max(abs(row.low), abs(row.high)) for row in rows)
    end = next(end for end in (0.1, 0.2, 0.3, 0.5, 0.75, 1) if end >= min(widest, 1))

    def place(difference: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, difference / end)), 2)

    rows_by_side = dict[str, list[Mark]]()
    for side, kinds in sides.items():
        title = TITLES["untaught" if trained == "nothing here" and side == "seen" else side]
        marks = list[Mark]()
        for name, row in kinds.items():
            delta = row[main]
            places = map(place, (delta.low, delta.mean, delta.high))
            marks.append(Mark(in_words(name), row, delta, *places))
        rows_by_side[title] = sorted(marks, key=most_gained_first)
    return Chart(round(100 * end), rows_by_side)


def most_gained_first(mark: Mark) -> tuple[float, str]:
    """Return by what the rows of a chart are sorted."""
    return -mark.delta.mean, mark.name


def conclusion(results: Results) -> str:
    """Count for each side the kinds whose intervals exclude 0."""
    sentences, main = [], results.main_difference
    for side, kinds in results.kinds.items():
        of_kinds = [claims.change(row, main) for row in kinds.values()]
        better, worse = claims.count(of_kinds)
        sentence = f"Of {counted(len(kinds), 'kind')} of {side} tasks: better on {better}, worse on {worse}"
        noted = Counter(claim.note for claim in of_kinds if claim.note)
        of_notes = [f"; {note} on {number}" for note, number in noted.items()]
        sentences.append(f"{sentence}{''.join(of_notes)}.")
    return f"{' '.join(sentences)} The other intervals contain 0; among this many, a few exclude 0 by chance."
