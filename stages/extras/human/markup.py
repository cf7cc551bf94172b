"""Styled text for the page that keeps every character: Markdown gets a style, and its marks stay visible.

Rendered Markdown would hide parts of an answer from the people who judge it: the language of a code fence, comments,
surplus table cells, targets of links. Invisible and direction-changing characters are written as escapes."""

import re
from collections.abc import Iterator

from stages.config.errors import UNSEEN, visible

CODE, STRONG, ESCAPED = "code", "strong", "escaped"
MARKUP = re.compile(
    rf"(?P<{CODE}>^[ \t]*(?P<fence>```+|~~~+).*(?:\n(?![ \t]*(?P=fence)).*)*+(?:\n.*)?|^[ \t]*\|.*|`[^`\n]+`)"
    rf"|(?P<{STRONG}>^\#{{1,6}} .*|\*\*[^*\n]+\*\*)",
    re.MULTILINE,
)


def spans(text: str) -> list[tuple[str, str]]:
    """Return the whole text as pairs of a style ('': none) and characters."""
    pieces, end = list[tuple[str, str]](), 0
    for match in MARKUP.finditer(text):
        pieces += [
            *escape_spans("", text[end : match.start()]),
            *escape_spans(str(match.lastgroup), match[0]),
        ]
        end = match.end()
    return [*pieces, *escape_spans("", text[end:])]


def escape_spans(style: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield the text in one style, with its invisible characters as escapes in the style ESCAPED."""
    end = 0
    for match in UNSEEN.finditer(text):
        if match[0] not in "\n\t":
            yield style, text[end : match.start()]
            yield ESCAPED, visible(match[0])
            end = match.end()
    yield style, text[end:]


def shown_text(text: str) -> str:
    """Return the characters of `spans(text)` as one string."""
    return visible(text, "\n\t")
