"""The chart of changes by kind of task, and its conclusion.

It is a table with a mark per row: the paired difference policy − SFT with its interval. The marks are placed in
percent of their width, so that text keeps its size on a phone."""

from typing import Any

from stages.pages.glossary import TEXTS, in_words
from stages.pages.headline import counted

TITLES: dict[str, str] = TEXTS["sides"]


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
        sentences.append(
            f"Of {counted(len(kinds), 'kind')} of {side} tasks: better on {better}, worse on {worse}."
        )
    return f"{' '.join(sentences)} The other intervals contain 0; among this many, a few exclude 0 by chance."
