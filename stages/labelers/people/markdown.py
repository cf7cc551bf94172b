"""Markdown of a model as HTML that can do nothing: no tag of its own, no link, no image, nothing that loads."""

from markdown_it import MarkdownIt
from markdown_it.token import Token

from stages.config.errors import visible

# Left as they were typed: where a link would lead, and that an image would be loaded, is for the reader to see.
LITERAL = ("link", "image", "autolink", "reference", "html_block", "html_inline")
PARSER = MarkdownIt("js-default", {"html": False, "breaks": True}).disable(LITERAL)


def rendered(text: str) -> str:
    """HTML of a text: headings are bold paragraphs, which leaves the outline to the page; characters that move a
    cursor or turn the direction of text are written out."""
    tokens = PARSER.parse(shown(text))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = "p"
            if token.nesting == 1:
                token.attrSet("class", "heading")
        harmless(token)
    return str(PARSER.renderer.render(tokens, PARSER.options, {}))


def harmless(token: Token) -> None:
    """The alignment of a table's cells is a style, which the page forbids; the language of code is nobody's class."""
    token.attrs.pop("style", None)
    if token.type == "fence":
        token.info = ""


def shown(text: str) -> str:
    """A text as it may stand on a page."""
    return visible(text, "\n\t")
