"""Faults of a request: its input, link or attachment is missing, or it asks for a picture."""

import re

from stages.store.text_units import paragraphs

NO_INPUT = re.compile(
    r"\W*(no\W{0,2}(other |further |additional )?input( \w+){0,5}|not (applicable|needed|required)|none|n/?a|null)\W*",
    re.IGNORECASE,
)
LINK = re.compile(r"\b(https?://|www\.)\S+", re.IGNORECASE)
READS = re.compile(
    r"\b(articles?|pages?|website|sites?|posts?|blogs?|stor(y|ies)|links?|videos?|urls?|text|document|passage|summar\w+|"
    r"read|review|analy[sz]e|extract|tweets?|paragraph|image|picture|photo|code)\b",
    re.IGNORECASE,
)
CODE = re.compile(r"[{}<>]|;\s*$|\b(def|import|SELECT|function|href|curl)\b", re.MULTILINE)
MEDIA = (
    r"(image|photo(graph)?|picture|pic|figure|painting|drawing|screenshot|diagram|chart|graph|map|video|audio|sound|"
    r"recording|song clip|clip|file|attachment|attached|document|pdf|link|gif|logo)s?"
)
# The name of a missing file in brackets or with its extension: `<Photo>`, `[image of a room]`, `room.png`.
STANDS_FOR = re.compile(
    rf"\W*[<\[(][^<>\[\]()]{{0,60}}\b{MEDIA}\b[^<>\[\]()]{{0,120}}[>\])]\W*|[\w-]+\.(png|jpe?g|gif|mp[34]|pdf|docx?|wav)",
    re.IGNORECASE,
)
POINTS = re.compile(
    r"\b(following|attached|this|given|provided|above|below)( \w+){0,2} "
    r"(image|photo(graph)?|picture|painting|drawing|screenshot|video|audio|recording|sound|attachment)\b",
    re.IGNORECASE,
)
PICTURE = re.compile(
    r"\b(design|draw|create|generate|sketch|make|produce|paint|render|construct|develop|come up with|build|compose|"
    r"provide|prepare|plot|illustrate)\b[^.?!\n]{0,50}?\b(logo|image|picture|drawing|illustration|poster|infographic|chart|graph|diagram|"
    r"sketch|painting|cartoon|icon|banner|flyer|graphic|photo|visual|mural|doodle|meme|gif|animation)s?\b",
    re.IGNORECASE,
)
WORDS_ABOUT = re.compile(
    r"\b(caption|describ\w+|descriptions?|slogan|title|story|essay|code|program|script|function|html|css|python|java|matplotlib|"
    r"text|ascii|text-based|explain|idea|ideas|tips|steps|plan|list)\b",
    re.IGNORECASE,
)


def last_paragraph(request: str) -> str:
    """Return the last paragraph, which usually is the input."""
    return (paragraphs(request) or [""])[-1]


def says_no_input(request: str) -> str | None:
    """Return a last paragraph that only says that there is no input, such as "<noinput>"."""
    parts = paragraphs(request)
    return parts[-1] if len(parts) > 1 and NO_INPUT.fullmatch(parts[-1]) else None


def needs_link(request: str) -> str | None:
    """Return the address of a web page that the model would have to read."""
    match = LINK.search(request)
    if not match or CODE.search(request):
        return None
    alone = len(last_paragraph(request).split()) <= 3 and LINK.search(last_paragraph(request))
    return match[0] if alone or READS.search(LINK.sub("", request)) else None


def needs_attachment(request: str) -> str | None:
    """Return the words that refer to a missing picture, recording or file."""
    if STANDS_FOR.fullmatch(last_paragraph(request)):
        return last_paragraph(request)
    match = POINTS.search(request)
    return match[0] if match and len(paragraphs(request)) == 1 else None


def asks_for_picture(request: str) -> str | None:
    """Return the words that ask for a picture, unless the request wants text or code about a picture."""
    match = PICTURE.search(request)
    return match[0] if match and not WORDS_ABOUT.search(request) else None
