"""The main chart: of every kind of task the paired difference of policy and SFT with its interval, one mark a row.

It is a table whose marks are SVGs without text, placed in percent of their width: on a phone the text keeps its size.
"""

from typing import Any

from stages.evaluation.outcomes import PRIMARY
from stages.pages.headline import counted
from stages.pages.kinds import in_words

TITLES = {
    "seen": "Seen: tasks that training prompts are made of",
    "unseen": "Unseen: tasks kept out of training",
    "tuning": "Tuning: tasks that settings are chosen by",
}


def chart(sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`sides`: kinds or tasks by side, each with its rates. Gives the scale's end in points and, by the title of the
    side, rows from most gained to most lost, with places in percent of the track."""
    rows = [row[PRIMARY] for kinds in sides.values() for row in kinds.values()]
    widest = max(max(abs(row["low"]), abs(row["high"])) for row in rows)
    end = next(end for end in (0.1, 0.2, 0.3, 0.5, 0.75, 1) if end >= min(widest, 1))

    def place(difference: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, difference / end)), 2)

    def drawn(name: str, row: dict[str, Any]) -> dict[str, Any]:
        delta = row[PRIMARY]
        places = {f"at_{which}": place(delta[which]) for which in ("low", "mean", "high")}
        return {**row, "name": in_words(name), "delta": delta, **places}

    return {
        "end": round(100 * end),
        "sides": {
            TITLES[side]: sorted(
                (drawn(*item) for item in kinds.items()), key=lambda row: (-row["delta"]["mean"], row["name"])
            )
            for side, kinds in sides.items()
        },
    }


def conclusion(sides: dict[str, dict[str, Any]], policy: str) -> str:
    """How many kinds of each side are clear of no change. `policy`: its title."""
    told = []
    for side, kinds in sides.items():
        better = sum(row[PRIMARY]["low"] > 0 for row in kinds.values())
        worse = sum(row[PRIMARY]["high"] < 0 for row in kinds.values())
        of = f"{counted(len(kinds), 'kind')} of {side} tasks"
        told.append(f"Of {of}, {policy} is better on {better} and worse on {worse}.")
    return f"{' '.join(told)} On the others the interval holds 0; of so many, some are clear of 0 by chance."


def furthest(sides: dict[str, dict[str, Any]]) -> str:
    """The single tasks that gained and lost most, which a mean over a kind hides."""
    moved = sorted((row[PRIMARY]["mean"], name, row) for tasks in sides.values() for name, row in tasks.items())
    told = [
        f"{word} {in_words(name)} ({row['sft']['mean']:.0%} → {row['policy']['mean']:.0%} of {row['prompts']})"
        for word, (mean, name, row), there in (
            ("most gained", moved[-1], moved[-1][0] > 0),
            ("most lost", moved[0], moved[0][0] < 0),
        )
        if there
    ]
    return f"Of single tasks: {', '.join(told)}." if told else ""
