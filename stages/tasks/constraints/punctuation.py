"""Constraints on punctuation marks between and inside words."""

import re
from collections.abc import Callable

from stages.store.text_units import lines
from stages.tasks.words import patterns_of

SHORTENED, RANGE, DASH = (re.compile(patterns_of(__file__)[name]) for name in ("shortened", "range", "dash"))
CHECKS: dict[str, Callable[..., bool]] = {
    "no_commas": lambda answer: not re.search("[,，،、]", answer),
    "exclamations_exactly": lambda answer, count: len(re.findall("[!！]", answer)) == count,
    "colons_at_least": lambda answer, count: len(re.findall("[:：]", answer)) >= count,
    "questions_exactly": lambda answer, count: len(re.findall("[?？]", answer)) == count,
    # Allow `'s` after a noun, because it may be a possessive.
    "no_contractions": lambda answer: not SHORTENED.search(answer.replace("_", " ")),
    # Allow a full stop after the ellipsis.
    "ellipsis_once": lambda answer: re.findall(r"\.{3,}|…+\.?", answer) in (["..."], ["...."], ["…"], ["…."]),
    "no_full_stops": lambda answer: (
        not re.search("[.。．]", answer) and (bool(re.search("[!?！？]", answer)) or len(lines(answer)) > 1)
    ),
    # Ignore the dash of a range such as 10–20, which is not between words.
    "dashes_at_least": lambda answer, count: len(DASH.findall(RANGE.sub(" ", answer.replace("_", "")))) >= count,
}


def parentheses_at_least(answer: str, count: int) -> bool:
    inside = re.findall(r"(?<!\])\(([^()]*)\)", answer)  # after a square bracket, the parentheses contain a link
    return sum(bool(re.search(r"\w\w", remark)) for remark in inside) >= count  # not "(s)" or "(1)"
