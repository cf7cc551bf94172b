"""A text with all of its characters, for a page: Markdown is given a style, and nothing of it is taken away.

Rendered Markdown hides what people would then not judge: a fence's language, comments, surplus cells, where a link
leads. Here the marks stay. A character that shows nothing, or turns the text around it, is written out.
"""

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
    """Return the text from its beginning to its end, in pairs of a style, '' for none, and characters."""
    pieces, end = list[tuple[str, str]](), 0
    for match in MARKUP.finditer(text):
        pieces += [*escape_spans("", text[end : match.start()]), *escape_spans(str(match.lastgroup), match[0])]
        end = match.end()
    return [*pieces, *escape_spans("", text[end:])]


def escape_spans(style: str, text: str) -> Iterator[tuple[str, str]]:
    """The characters of one style, and between them those that are written out, in a style of their own."""
    end = 0
    for match in UNSEEN.finditer(text):
        if match[0] not in "\n\t":
            yield style, text[end : match.start()]
            yield ESCAPED, visible(match[0])
            end = match.end()
    yield style, text[end:]


def shown_text(text: str) -> str:
    """The text of `spans` in one string."""
    return visible(text, "\n\t")
