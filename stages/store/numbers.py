"""Numbers and numbered names for people, in messages, tables and pages."""

from collections import Counter
from collections.abc import Mapping, Sequence


def signed(number: float, form: str) -> str:
    """Return a number in a form of `str.format` with a minus sign: `−1.7 points`. A `z` in it writes −0.0 as 0.0."""
    text = form.format(number)
    return f"−{text[1:]}" if text.startswith("-") else text


def points(difference: float) -> str:
    """Return a difference of shares in percentage points: `+8.6`, `−1.7`."""
    return signed(100 * difference, "{:+z.1f}")


def bound(difference: float) -> str:
    """Return a bound of a difference in points. It keeps its sign: `−0.0` is below zero, although it rounds."""
    return signed(100 * difference, "{:+.1f}")


def numbered(names: Sequence[str]) -> list[str]:
    """Return the names, with a number behind each of several equal ones: `judge 1`, `judge 2`."""
    totals, counts, result = Counter(names), Counter[str](), list[str]()
    for name in names:
        counts[name] += 1
        result.append(f"{name} {counts[name]}" if totals[name] > 1 else name)
    return result


def count_clauses(counts: Mapping[str, int]) -> list[str]:
    """Return a clause for each count that is not 0: `3 copies left out`. The keys name what is counted."""
    return [f"{count} {name}" for name, count in counts.items() if count]
