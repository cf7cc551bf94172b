"""Constraints on additions to an answer: a postscript, a signature, a date, a source, a rating, hashtags, emoji."""

import re
from collections.abc import Callable

from stages.store.text_units import lines, paragraphs
from stages.tasks.words import patterns_of

_PATTERNS = patterns_of(__file__)
_CLOSING, _DAY, _MONTH, _PICTURE = (_PATTERNS[name] for name in ("closing", "day", "month", "picture"))
_DATE = (
    rf"(?:{_DAY}(?:st|nd|rd|th)?(?: of)? {_MONTH},? [0-9]{{4}}|{_MONTH} {_DAY}(?:st|nd|rd|th)?,? [0-9]{{4}}"
    r"|[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01]))"
)
# A flag has two letters, a keycap a digit and a frame; families and professions join several pictures.
_EMOJI = rf"[\U0001f1e6-\U0001f1ff]{{2}}|[0-9#*]\ufe0f?\u20e3|{_PICTURE}(?:\u200d{_PICTURE})*"
CHECKS: dict[str, Callable[..., bool]] = {
    "hashtags": lambda answer, count: len(re.findall(r"(?<![\w#&/])#(?=\w*[^\W\d_])\w+", answer)) >= count,
    "side_note": lambda answer: any(_labelled(line, "Note[*_]*:") for line in lines(answer)),
    "source_line": lambda answer: any(_labelled(line, "Sources?[*_]*:") for line in lines(answer)[1:][-1:]),
    "emoji_at_least": lambda answer, count: len(re.findall(_EMOJI, answer)) >= count,
}


def placeholders(answer: str, count: int) -> bool:
    inside = [part.strip() for part in re.findall(r"\[([^\[\]\n]+)\](?!\()", answer)]
    named = [part for part in inside if any(map(str.isalpha, part)) and part.lower() != "x"]  # "[x]" is a ticked box
    return len(named) >= count


def postscript(answer: str, marker: str) -> bool:
    ends = lines(answer)[1:][-1:] + paragraphs(answer)[1:][-1:]
    return any(_labelled(end, re.escape(marker)) for end in ends)


def two_answers(answer: str) -> bool:
    parts = ["".join(part.casefold().split()) for part in re.split(r"(?m)^[ \t]*\*{6}[ \t\r]*$", answer)]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def signed(answer: str, name: str) -> bool:
    *before, last = lines(answer) or [""]
    signature = rf"(?:{_CLOSING})?(?:[-–—~]+ ?)?{re.escape(name)}[.!]?"
    return bool(before) and bool(re.fullmatch(signature, _plain(last), re.IGNORECASE))


def rating(answer: str) -> bool:
    number = r"(?<![\w/.,−-])(?:10|[0-9])"
    return bool(re.search(rf"{number} ?(?:/|out of) ?10(?![\w/]|[.,][0-9])", _plain(answer), re.IGNORECASE))


def dated(answer: str) -> bool:
    first, *after = lines(answer) or [""]
    return bool(after) and bool(re.fullmatch(rf"(?:date: ?)?(?:\w+day,? )?{_DATE}[.:]?", _plain(first), re.IGNORECASE))


def _plain(text: str) -> str:
    """Return the text without marks of emphasis and headings, and with single spaces."""
    return " ".join(re.sub(r"[*_#]", "", text).split())


def _labelled(text: str, label: str) -> bool:
    """Return whether the text begins with the pattern `label` and continues. Bold and italic marks are ignored."""
    return bool(re.match(rf"[*_]*{label}[\W_]*[^\W_]", text, re.IGNORECASE))
