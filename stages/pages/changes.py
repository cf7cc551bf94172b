"""The main chart: of every kind of task the paired difference of policy and SFT with its interval, one mark a row.

It is a table whose marks are SVGs without text, placed in percent of their width: on a phone the text keeps its size.
"""

from typing import Any

from stages.evaluation.intervals import Interval
from stages.pages.glossary import in_words
from stages.pages.headline import counted

NAMED = 3  # tasks in a sentence
TITLES = {
    "seen": "Seen: tasks that training prompts are made of",
    "unseen": "Unseen: tasks kept out of training",
    "tuning": "Tuning: tasks that settings are chosen by",
}
UNTAUGHT = "Seen: tasks of the kinds that training prompts could be made of; nothing was trained on them here"


def chart(results: dict[str, Any], by: str, taught: str = "it") -> dict[str, Any]:
    """`by`: kinds or tasks; `taught`: what learnt from tasks like the seen ones, or `nothing here`. Gives the scale's
    end in points and, by the title of the side, rows from most gained to most lost, placed in percent of the track."""
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

    return {
        "end": round(100 * end),
        "sides": {
            (UNTAUGHT if taught == "nothing here" and side == "seen" else TITLES[side]): sorted(
                (drawn(*item) for item in kinds.items()), key=lambda row: (-row["delta"]["mean"], row["name"])
            )
            for side, kinds in sides.items()
        },
    }


def conclusion(results: dict[str, Any]) -> str:
    """Return how many kinds of each side are clear of no change."""
    sentences, main = [], results["main_difference"]
    for side, kinds in results["kinds"].items():
        better = sum(row[main]["low"] > 0 for row in kinds.values())
        worse = sum(row[main]["high"] < 0 for row in kinds.values())
        sentences.append(f"Of {counted(len(kinds), 'kind')} of {side} tasks: better on {better}, worse on {worse}.")
    return f"{' '.join(sentences)} The other intervals hold 0; of so many, some are clear of it by chance."


def single(results: dict[str, Any]) -> str:
    """The single tasks that are clear of no change, which a mean over a kind hides, and on how many unseen ones no
    model passes any prompt."""
    sides, main, before = results["tasks"], results["main_difference"], results["before"]
    rows = [(name, row, Interval(**row[main])) for tasks in sides.values() for name, row in tasks.items()]
    told = []
    for word, clear in (("better", [r for r in rows if r[2].low > 0]), ("worse", [r for r in rows if r[2].high < 0])):
        if clear:
            most = sorted(clear, key=lambda r: -abs(r[2].mean))[:NAMED]
            those = ", ".join(
                f"“{in_words(name)}” ({row[before]['mean']:.0%} → {row['policy']['mean']:.0%} of {row['prompts']})"
                for name, row, _ in most
            )
            more = f" and {len(clear) - NAMED} more" if len(clear) > NAMED else ""
            told.append(f"{word} on {those}{more}")
    found = [f"By themselves, of {len(rows)} tasks: {'; '.join(told)}."] if told else []
    unseen = list(sides.get("unseen", {}).values())
    never = sum(row[before]["mean"] == row["policy"]["mean"] == 0 for row in unseen)
    if never:
        found.append(f"On {never} of {counted(len(unseen), 'unseen task')} neither passes any prompt.")
    return " ".join(found)
