"""Guess the encodings of a text that is not UTF-8, for the settings in its error. Nothing is read on a guess."""

import codecs
import re
from collections.abc import Callable, Collection
from contextlib import suppress

from stages.config.installation import read_beside

CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
BEYOND_LATIN_WORDS = re.compile(r"(?<![A-Za-z])[^\x00-\x7f]+(?![A-Za-z])")
LONGEST_RUN = 2  # of letters beyond ASCII in a word of a language with Latin letters
LEAST_PLAUSIBLE = 0.5  # share of the characters beyond ASCII that are common ones
MOST_SHOWN = 3
LONGEST_PREVIEW = 30  # characters of a word

TABLES = read_beside(__file__)
MARKS = {*TABLES["marks"]}


def likely_encodings(content: bytes, is_cut: bool = False) -> list[str]:
    """Return the encodings that may be a content's, the likeliest first. `is_cut`: the content may end within a
    character."""
    if b"\0" in content:
        return [name for name in utf_16_by_zeros(content) if decoded(content, name, is_cut)][:1]
    scores = dict[str, float]()
    for name, score in SCORES.items():
        text = decoded(content, name, is_cut)
        if text is not None:
            scores[name] = score(name, text)
    plausible = [name for name in scores if scores[name] >= LEAST_PLAUSIBLE]
    return sorted(plausible, key=lambda name: -scores[name])[:MOST_SHOWN]


def preview(content: bytes, encoding: str, others: Collection[str] = ()) -> str:
    """Return the first word beyond ASCII that a content has in an encoding and not in the others; empty if there is
    none."""
    other_words = {word for other in others for word in words_beyond_ascii(content, other)}
    words = words_beyond_ascii(content, encoding)
    return next((word for word in words if word not in other_words), "")


def words_beyond_ascii(content: bytes, encoding: str) -> list[str]:
    words = content.decode(encoding, "replace").split()
    return [word[:LONGEST_PREVIEW] for word in words if not word.isascii()]


def decoded(content: bytes, encoding: str, is_cut: bool) -> str | None:
    """Return the text of a content in an encoding; None if it is not in it, or has control characters."""
    with suppress(UnicodeError):
        text = codecs.getincrementaldecoder(encoding)().decode(content, final=not is_cut)
        if not CONTROL.search(text):
            return text
    return None


def utf_16_by_zeros(content: bytes) -> list[str]:
    """Return the two orders of UTF-16's bytes: most texts have spaces and line ends, whose upper byte is zero."""
    zeros_first, zeros_second = content[::2].count(0), content[1::2].count(0)
    names = ["utf-16-le", "utf-16-be"]
    return names if zeros_second >= zeros_first else names[::-1]


def score_between(encoding: str, text: str) -> float:
    """Return the share of common letters among those beyond ASCII, which stand one by one in words."""
    common = {*TABLES["between"][encoding]} | MARKS
    runs = BEYOND_ASCII.findall(text)
    fitting = "".join(run for run in runs if len(run) <= LONGEST_RUN)
    return sum(letter in common for letter in fitting) / max(1, len("".join(runs)))


def score_words(encoding: str, text: str) -> float:
    """Return the share of an alphabet's letters among the characters beyond ASCII. They stand in words without letters of
    ASCII, as capitals only at the beginning."""
    common = {*TABLES["words"][encoding]} | MARKS
    runs = BEYOND_ASCII.findall(text)
    fitting = 0
    for run in BEYOND_LATIN_WORDS.findall(text):
        small = run[:1].lower() + run[1:]
        fitting += sum(letter in common for letter in small)
    return fitting / max(1, len("".join(runs)))


def score_pairs(encoding: str, text: str) -> float:
    """Return the share of common characters among those beyond ASCII, by their first byte of two."""
    areas = TABLES["pairs"][encoding].values()
    letters = "".join(BEYOND_ASCII.findall(text))
    common = 0
    for letter in letters:
        code = letter.encode(encoding)
        common += len(code) == 2 and any(low <= code[0] <= high for low, high in areas)
    return common / max(1, len(letters))


SCORES: dict[str, Callable[[str, str], float]] = {
    **dict.fromkeys(TABLES["between"], score_between),
    **dict.fromkeys(TABLES["words"], score_words),
    **dict.fromkeys(TABLES["pairs"], score_pairs),
}
