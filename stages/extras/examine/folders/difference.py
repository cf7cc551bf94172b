"""One key in which a model's folder differs from the folder that its training started from, and the table of all."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

NOT_SET = "not set"
NONE = "none"
LONGEST = 160  # characters of a value in the table


class Level(StrEnum):
    """What a difference does to answers, the worst first."""

    breaks = "breaks"  # there are no answers, or none that its training meant
    unknown = "unknown"  # this part could not be compared
    changes = "changes"  # answers differ, though no weight that was trained does
    differs = "differs"  # a training may do this, or no answer depends on it


LEVELS = [*Level]


@dataclass(frozen=True)
class Difference:
    """A key of a model with its value, the value of the start, and what the difference does to answers."""

    key: str
    start: str
    model: str
    effect: str
    level: Level


@dataclass
class Row:
    """A key in which at least one model differs from the start. `values`: of the start, then of each model."""

    key: str
    level: Level
    values: list[str]
    effect: str

    def in_words(self, titles: Sequence[str]) -> str:
        """Return the row as a line of a log: every value that differs from the start's, and what that does."""
        start = self.values[0]
        values = [
            f"{title} {value}"
            for title, value in zip(titles[1:], self.values[1:], strict=True)
            if value != start
        ]
        clauses = [f"{titles[0]} {start}", *values] if start else values
        return f"{self.key}: {', '.join(clauses)}: {self.effect}"


def table_rows(differences_by_model: Sequence[Sequence[Difference]]) -> list[Row]:
    """Return a row for each key in which a model differs, the worst first. A model that has no difference at a key has
    the start's value."""
    by_key = dict[str, dict[int, Difference]]()
    for number, differences in enumerate(differences_by_model):
        for difference in differences:
            by_key.setdefault(difference.key, {})[number] = difference
    rows = list[Row]()
    for key, by_model in by_key.items():
        worst = min(by_model.values(), key=lambda each: LEVELS.index(each.level))
        values = [worst.start]
        for number in range(len(differences_by_model)):
            values.append(by_model[number].model if number in by_model else worst.start)
        rows.append(Row(key, worst.level, values, worst.effect))
    return sorted(rows, key=lambda row: LEVELS.index(row.level))


def value_text(value: Any) -> str:
    """Return a value as the table shows it: on one line, and not longer than LONGEST characters."""
    if value is None:
        return NOT_SET
    text = value if isinstance(value, str) else repr(value)
    text = text.replace("\n", "⏎")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested settings by their dotted keys."""
    values = dict[str, Any]()
    for key, value in settings.items():
        if isinstance(value, dict):
            values |= flatten(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values
