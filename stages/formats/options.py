"""Options to choose from: what they say, and which of them a label means."""

import re
from collections.abc import Iterable
from typing import Any

from stages.formats.readers.row import BadRow
from stages.formats.turns import listed, text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MARK = re.compile(r"\s*\(?([A-Z])\s*[).:]\s*")  # before an option: A)


def options_of(value: Any) -> tuple[list[str], list[str]]:
    """The names of options (letters, where they have none) and their texts: of a list of texts, of objects with a
    label and a text each, of an object with a list of each (ARC), or with a text by each name."""
    if isinstance(value, dict) and value and all(isinstance(each, str) for each in value.values()):
        value = {"label": [*value], "text": [*value.values()]}
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        value = {key: [each.get(key) for each in value] for key in ("label", "text")}
    names = value.get("label") if isinstance(value, dict) else None
    texts = [
        text(each, "options") for each in listed(value.get("text") if isinstance(value, dict) else value, "options")
    ]
    marks = [MARK.match(each) for each in texts]
    if [mark and mark[1] for mark in marks] == [*LETTERS[: len(texts)]]:
        texts = [each[mark.end() :] for each, mark in zip(texts, marks, strict=True) if mark]
    return [str(name) for name in names or LETTERS[: len(texts)]], texts


def lowest(labels: Iterable[tuple[str, Any]]) -> int | None:
    """What number the first option has, in rows of a label and options: 0 or 1. None where they do not tell."""
    ends = set[int]()
    for label, options in labels:
        if label.isdecimal() and isinstance(options, list):
            ends |= {0} if int(label) == 0 else {1} if int(label) == len(options) else set()
    return min(ends, default=None)


def chosen(label: Any, names: list[str], texts: list[str], low: int | None) -> str:
    """The option that a label means: by its name, its letter, its number from `low`, or its text."""
    given = str(label).strip()
    if given in names:
        return texts[names.index(given)]
    if given in texts:
        return given
    if given.isdecimal() and low is None:
        raise BadRow("label", f"{given!r}: no row tells whether the first option is 0 or 1")
    place = int(given) - (low or 0) if given.isdecimal() else LETTERS.find(given.upper()) if len(given) == 1 else -1
    if not 0 <= place < len(texts):
        raise BadRow("label", f"{given!r:.40} names none of {len(texts)} options")
    return texts[place]
