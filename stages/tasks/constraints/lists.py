"""Constraints on lists: the number of items, their marks, their content, and the text around them."""

import re
from collections.abc import Callable
from unicodedata import normalize

from stages.store.text_units import BULLET, lines, lower_words, words

DASH = re.compile(r"\s*[-*]\s+(?=\S)")
MARKED = r"\s*(?:[-*•+]\s+)?[*_]*\(?({})[.)][*_]*\s+(?=\S)"  # a marker, also in bold, in brackets or after a bullet
NUMBER = re.compile(MARKED.format(r"\d{1,3}"))
LETTER = re.compile(MARKED.format("[A-Za-z]"))
ITEM = re.compile(f"{NUMBER.pattern}|{BULLET.pattern}")
BOX = re.compile(r"\s*(?:[-*•+]\s+)?\[ \]\s*\S")
CHECKS: dict[str, Callable[..., bool]] = {
    "bullets_exactly": lambda answer, count: len(_items(answer, BULLET)) == len(_items(answer, DASH)) == count,
    "numbered_exactly": lambda answer, count: [*map(int, _marks(answer, NUMBER))] == [*range(1, count + 1)],
    "lettered_items": lambda answer, count: "".join(_marks(answer, LETTER)).lower() == "abcdefghi"[:count],
    "checklist": lambda answer, count: sum(BOX.match(line) is not None for line in answer.splitlines()) >= count,
}


def list_with_intro(answer: str) -> bool:
    intro, *below = lines(answer)
    return _prose(intro) and len(below) > 1 and BULLET.match(below[0]) is not None and len(_items(answer, BULLET)) >= 2


def items_short(answer: str, count: int) -> bool:
    items = _items(answer)
    return len(items) >= 3 and all(len(words(item)) <= count for item in items)


def items_sorted(answer: str) -> bool:
    # letters with accents sort like plain letters
    heads = [normalize("NFKD", "".join(lower_words(item)[:1])).strip("_") for item in _items(answer, BULLET)]
    return len(heads) >= 3 and heads == sorted(heads)


def items_as_questions(answer: str) -> bool:
    items = _items(answer)
    return len(items) >= 2 and all(item.rstrip(" \"'”’»*_").endswith("?") for item in items)


def items_with_colon(answer: str) -> bool:
    items = _items(answer)
    parts = [re.match(r"([^:]+):(?!\d)(.+)", item) for item in items]
    return len(items) >= 2 and all(part and 1 <= len(words(part[1])) <= 5 and words(part[2]) for part in parts)


def list_then_paragraph(answer: str) -> bool:
    last = answer.splitlines()[-1]
    return len(_items(answer)) >= 2 and not last[0].isspace() and _prose(last)


def _items(answer: str, marker: re.Pattern[str] = ITEM) -> list[str]:
    """Return the texts of list items, each with the indented lines below it. A rule such as `* * *` is not an item."""
    items: list[str] = []
    for line in answer.splitlines():
        if mark := marker.match(line):
            items.append(line[mark.end() :].strip())
        elif items and line[:1].isspace() and line.strip():
            items[-1] += " " + line.strip()
    return [item for item in items if item.strip("-*_ ")]


def _marks(answer: str, marker: re.Pattern[str]) -> list[str]:
    return [mark[1] for line in answer.splitlines() if (mark := marker.match(line))]


def _prose(line: str) -> bool:
    """Return whether a line has four words, ends like a sentence or with a colon, and is not an item or a heading."""
    ending = re.split(r"\w", line)[-1]
    plain = not ITEM.match(line) and not LETTER.match(line) and line[0] not in "#>|["
    return plain and len(words(line)) >= 4 and any(mark in ending for mark in ".!?…:")
