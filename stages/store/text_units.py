"""The units of a text that checkers count: words, sentences, paragraphs, lines and list items."""

import re

BULLET = re.compile(r"\s*[-*•+]\s+(?=\S)")
NUMBER = re.compile(r"\s*\d+[.)]\s+(?=\S)")


def words(text: str) -> list[str]:
    """Return the words without punctuation around them. `don't` and `well-known` are one word each."""
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def lower_words(text: str) -> list[str]:
    return [word.lower() for word in words(text)]


def lines(text: str) -> list[str]:
    """Return the lines that are not blank, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def paragraphs(text: str) -> list[str]:
    """Return the parts of a text between blank lines."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def sentences(text: str) -> list[str]:
    """Return the sentences: parts that end in a full stop, a question mark, an exclamation mark or at a line's end.
    The marker of a list item (`1.`) is not a sentence, and abbreviations (`e.g.`) do not end one."""
    plain = re.sub(r"(?m)^[ \t]*(?:[-*•+]|\d+[.)])[ \t]+", "", text)
    plain = re.sub(r"\b(Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e|a\.m|p\.m)\.", lambda m: m[0].replace(".", ""), plain)
    parts = re.split(r"(?<=[.!?…])[\"'”’)*_]*\s+|\n+", plain)
    return [part.strip() for part in parts if re.search(r"\w", part)]


def bullet_items(text: str) -> list[str]:
    """Return the texts of all bullet items."""
    return [BULLET.sub("", line, count=1).strip() for line in text.splitlines() if BULLET.match(line)]


def numbered_items(text: str) -> list[str]:
    """Return the texts of all numbered items."""
    return [NUMBER.sub("", line, count=1).strip() for line in text.splitlines() if NUMBER.match(line)]


def plain_words(text: str) -> list[str]:
    """Return the words in lower case. Compounds are divided, so that marks of emphasis (`_word_`) hide no word."""
    return re.findall(r"[^\W_]+", text.lower())
