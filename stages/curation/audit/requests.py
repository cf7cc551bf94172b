"""What is wrong with a request, as far as its text tells: it needs what is not there, or asks for what text is not."""

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
# Brackets or quotes around nothing but the name of what should be there: `<Photo>`, `[image of a room]`.
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


def last(request: str) -> str:
    """The last paragraph, where an input stands."""
    return (paragraphs(request) or [""])[-1]


def says_no_input(request: str) -> str | None:
    """A marker where an input should stand, which the generator of the request left there."""
    parts = paragraphs(request)
    return parts[-1] if len(parts) > 1 and NO_INPUT.fullmatch(parts[-1]) else None


def needs_link(request: str) -> str | None:
    """A page that has to be read: its address stands alone, or is spoken of as something to read."""
    found = LINK.search(request)
    if not found or CODE.search(request):
        return None
    alone = len(last(request).split()) <= 3 and LINK.search(last(request))
    return found[0] if alone or READS.search(LINK.sub("", request)) else None


def needs_attachment(request: str) -> str | None:
    """A picture, a recording or a file that is not there."""
    if STANDS_FOR.fullmatch(last(request)):
        return last(request)
    pointed = POINTS.search(request)
    return pointed[0] if pointed and len(paragraphs(request)) == 1 else None


def asks_for_picture(request: str) -> str | None:
    """A picture to be made, not one to be put into words or code."""
    found = PICTURE.search(request)
    return found[0] if found and not WORDS_ABOUT.search(request) else None
