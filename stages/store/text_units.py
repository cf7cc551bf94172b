"""What checkers read in an open answer: its words, sentences, paragraphs and lines."""

import re

BULLET = re.compile(r"\s*[-*•+]\s+(?=\S)")
NUMBER = re.compile(r"\s*\d+[.)]\s+(?=\S)")


def words(text: str) -> list[str]:
    """Words as they are written, without marks around them; `don't` and `well-known` are one each."""
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def lower_words(text: str) -> list[str]:
    return [word.lower() for word in words(text)]


def lines(text: str) -> list[str]:
    """Its lines that are not blank, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def paragraphs(text: str) -> list[str]:
    """What stands between blank lines."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def sentences(text: str) -> list[str]:
    """What ends in a full stop, a question or exclamation mark, or with its line; the marker of a list item is no
    sentence. An abbreviation with a stop in it ends none."""
    plain = re.sub(r"(?m)^[ \t]*(?:[-*•+]|\d+[.)])[ \t]+", "", text)
    plain = re.sub(r"\b(Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e|a\.m|p\.m)\.", lambda m: m[0].replace(".", ""), plain)
    parts = re.split(r"(?<=[.!?…])[\"'”’)*_]*\s+|\n+", plain)
    return [part.strip() for part in parts if re.search(r"\w", part)]


def bullet_items(text: str) -> list[str]:
    """The texts of its bullets."""
    return [BULLET.sub("", line, count=1).strip() for line in text.splitlines() if BULLET.match(line)]


def numbered_items(text: str) -> list[str]:
    """The texts of its numbered items."""
    return [NUMBER.sub("", line, count=1).strip() for line in text.splitlines() if NUMBER.match(line)]


def plain_words(text: str) -> list[str]:
    """Lower-case words, the parts of compounds apart, so that marks of emphasis hide none."""
    return re.findall(r"[^\W_]+", text.lower())
