"""Numbers and numbered names as people read them, wherever they are told: in messages, tables and pages."""

from collections import Counter
from collections.abc import Sequence


def signed(number: float, form: str) -> str:
    """The number in a form of `str.format`, with a minus sign where that begins with a hyphen: `−1.7 points`. A form
    with `z` has no zero below zero."""
    text = form.format(number)
    return f"−{text[1:]}" if text.startswith("-") else text


def points(difference: float) -> str:
    """A difference of shares in points: `+8.6`, `−1.7`."""
    return signed(100 * difference, "{:+z.1f}")


def bound(difference: float) -> str:
    """A bound of a difference in points, on its side of zero: `−0.0` is below it, though it rounds to it."""
    return signed(100 * difference, "{:+.1f}")


def numbered(names: Sequence[str]) -> list[str]:
    """Return the names; several that are alike get a number each: `judge 1`, `judge 2`."""
    totals, counts, result = Counter(names), Counter[str](), list[str]()
    for name in names:
        counts[name] += 1
        result.append(f"{name} {counts[name]}" if totals[name] > 1 else name)
    return result
