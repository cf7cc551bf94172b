"""Constraints on punctuation marks between and inside words."""

import re

from stages.store.text_units import lines
from stages.tasks.constraint import Side, constraint, count_of

SHORTENED = re.compile(
    r"n['’‘ʼ]t\b|\w['’‘ʼ](?:re|ve|ll|m|d)\b|"
    r"\b(?:it|that|there|here|what|who|where|how|let|he|she)['’‘ʼ]s\b",
    re.IGNORECASE,
)
RANGE = re.compile(r"(?<=\d)[ \t]*[-–—][ \t]*(?=\d)")
DASH = re.compile(r"(?<=[\w\"'”’»)*`.,!?%])[ \t]*(?:[–—]|-{2,3}|(?<=[ \t])-(?=\s))\s*(?=[\w\"'“‘«(*`$])")


@constraint(Side.train, "commas")
def no_commas(answer: str) -> bool:
    return not re.search("[,，،、]", answer)


@constraint(Side.train, "exclamations", count_of(2, 3, 4))
def exclamations_exactly(answer: str, count: int) -> bool:
    return len(re.findall("[!！]", answer)) == count


@constraint(Side.train, "colons", count_of(2, 3, 4))
def colons_at_least(answer: str, count: int) -> bool:
    return len(re.findall("[:：]", answer)) >= count


@constraint(Side.validation, "brackets", count_of(2, 3))
def parentheses_at_least(answer: str, count: int) -> bool:
    inside = re.findall(r"(?<!\])\(([^()]*)\)", answer)  # after a square bracket, the parentheses contain a link
    return sum(bool(re.search(r"\w\w", remark)) for remark in inside) >= count  # not "(s)" or "(1)"


@constraint(Side.test, "questions", count_of(2, 3, 4))
def questions_exactly(answer: str, count: int) -> bool:
    return len(re.findall("[?？]", answer)) == count


@constraint(Side.test, "words")
def no_contractions(answer: str) -> bool:
    """Allow `'s` after a noun, because it may be a possessive."""
    return not SHORTENED.search(answer.replace("_", " "))


@constraint(Side.aside, "colons end")
def ellipsis_once(answer: str) -> bool:
    """Allow a full stop after the ellipsis."""
    return re.findall(r"\.{3,}|…+\.?", answer) in (["..."], ["...."], ["…"], ["…."])


@constraint(Side.test, "end layout exclamations questions")
def no_full_stops(answer: str) -> bool:
    return not re.search("[.。．]", answer) and (bool(re.search("[!?！？]", answer)) or len(lines(answer)) > 1)


@constraint(Side.aside, "brackets", count_of(2, 3))
def dashes_at_least(answer: str, count: int) -> bool:
    """Ignore the dash of a range such as 10–20, which is not between words."""
    return len(DASH.findall(RANGE.sub(" ", answer.replace("_", "")))) >= count
