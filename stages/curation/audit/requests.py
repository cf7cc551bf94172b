"""Faults of a request: its input, link or attachment is missing, or it asks for a picture."""

import re

from stages.config.installation import read_beside
from stages.store.text_units import paragraphs


def patterns_of(module: str) -> dict[str, re.Pattern[str]]:
    """Return the patterns in the YAML file beside a module. A line break inside a pattern does not count."""
    return {name: re.compile(text.replace("\n", "")) for name, text in read_beside(module).items()}


PATTERNS = patterns_of(__file__)


def last_paragraph(request: str) -> str:
    """Return the last paragraph, which usually is the input."""
    return (paragraphs(request) or [""])[-1]


def says_no_input(request: str) -> str | None:
    """Return a last paragraph that only says that there is no input, such as "<noinput>"."""
    parts = paragraphs(request)
    return parts[-1] if len(parts) > 1 and PATTERNS["no_input"].fullmatch(parts[-1]) else None


def needs_link(request: str) -> str | None:
    """Return the address of a web page that the model would have to read."""
    match = PATTERNS["link"].search(request)
    if not match or PATTERNS["code"].search(request):
        return None
    alone = len(last_paragraph(request).split()) <= 3 and PATTERNS["link"].search(last_paragraph(request))
    return match[0] if alone or PATTERNS["reads"].search(PATTERNS["link"].sub("", request)) else None


def needs_attachment(request: str) -> str | None:
    """Return the words that refer to a missing picture, recording or file."""
    if PATTERNS["stands_for"].fullmatch(last_paragraph(request)):
        return last_paragraph(request)
    match = PATTERNS["points"].search(request)
    return match[0] if match and len(paragraphs(request)) == 1 else None


def asks_for_picture(request: str) -> str | None:
    """Return the words that ask for a picture, unless the request wants text or code about a picture."""
    match = PATTERNS["picture"].search(request)
    return match[0] if match and not PATTERNS["words_about"].search(request) else None
