"""Names of several things of a kind, told apart."""

from collections import Counter
from collections.abc import Sequence


def told_apart(names: Sequence[str]) -> list[str]:
    """The names; of several that are alike, each with its number: `judge 1`, `judge 2`."""
    again, several = Counter[str](), Counter(names)
    found = []
    for name in names:
        again[name] += 1
        found.append(f"{name} {again[name]}" if several[name] > 1 else name)
    return found
