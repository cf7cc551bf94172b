"""Words, sentences, paragraphs, lines and list items of a text, as checkers count them; conversations as texts."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BULLET = re.compile(r"\s*[-*•+]\s+(?=\S)")
NUMBER = re.compile(r"\s*\d+[.)]\s+(?=\S)")
UNSPACED = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"  # Thai, Lao, Japanese, Chinese
VOWELS = r"[\u0900-\u0963\u0966-\u0dff]"  # of Indian scripts: marks, which \w leaves out
# Soft hyphen, zero-width space, word joiner, byte order mark
INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
PLAIN_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+(?:{VOWELS}+[^\W_{UNSPACED}]*)*")


def as_seen(text: str) -> str:
    """Return a text in one Unicode form (NFC) and without invisible characters. Two texts that look alike are equal
    in this form."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", text).translate(INVISIBLE)


def count_words(text: str) -> int:
    """Return the number of words between spaces. In a script without spaces, each character is one."""
    return len(re.sub(f"([{UNSPACED}])", r" \1 ", text).split())


def words(text: str) -> list[str]:
    """Return the words without punctuation around them. `don't` and `well-known` are one word each."""
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def lower_words(text: str) -> list[str]:
    return [word.lower() for word in words(text)]


def lines(text: str) -> list[str]:
    """Return the lines that are not blank, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def unmarked(text: str) -> str:
    """Return a text without Markdown's marks for headings, emphasis and code, and with single spaces."""
    return " ".join(re.sub(r"[*_#`]", "", text).split())


def paragraphs(text: str) -> list[str]:
    """Return the parts of a text between blank lines."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def sentences(text: str) -> list[str]:
    """Return the sentences: parts that end in a full stop, a question mark, an exclamation mark or at a line's end.
    The marker of a list item (`1.`) is not a sentence, and abbreviations (`e.g.`, `U.S.`) do not end one."""
    plain = re.sub(r"(?m)^[ \t]*(?:[-*•+]|\d+[.)])[ \t]+", "", text)
    plain = re.sub(
        r"\b(Mr|Mrs|Ms|Dr|St|vs|etc|[A-Za-z](?:\.[A-Za-z])+)\.",
        lambda m: m[0].replace(".", ""),
        plain,
    )
    parts = re.split(r"(?<=[.!?…])[\"'”’)*_]*\s+|\n+", plain)
    return [part.strip() for part in parts if re.search(r"\w", part)]


def bullet_items(text: str) -> list[str]:
    """Return the texts of all bullet items."""
    return [
        BULLET.sub("", line, count=1).strip() for line in text.splitlines() if BULLET.match(line)
    ]


def numbered_items(text: str) -> list[str]:
    """Return the texts of all numbered items."""
    return [
        NUMBER.sub("", line, count=1).strip() for line in text.splitlines() if NUMBER.match(line)
    ]


def plain_words(text: str) -> list[str]:
    """Return the words in lower case. Compounds are divided, so that marks of emphasis (`_word_`) hide no word. In
    scripts without spaces, every character is a word."""
    return PLAIN_WORD.findall(text.lower())


def find_runs(words: Sequence[str], run: Sequence[str]) -> Iterator[int]:
    """Yield the indices at which a run of words begins among other words."""
    yield from (i for i in range(len(words) - len(run) + 1) if words[i : i + len(run)] == run)


def find_run(words: Sequence[str], run: Sequence[str]) -> int | None:
    """Return the index at which a run of words first begins among other words, or None."""
    return next(find_runs(words, run), None)


def transcript(messages: Sequence[Mapping[str, str]]) -> str:
    """Return the text of a single message, or the texts of several messages with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def count_shared_prefix(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return how many messages or tokens two sequences share at the start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(first), len(second)))
