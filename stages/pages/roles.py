"""How a model looks wherever a page shows it: a colour for light and one for dark pages, and a shape. Shapes and
lightness tell models apart where hues do not; every colour has a contrast of 3:1 or more to the page."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    light: str
    dark: str
    glyph: str  # in text
    marker: str  # matplotlib's name of the same shape


LOOKS = {
    "base": Look("#858d9c", "#768090", "▲", "^"),
    "sft": Look("#0a3f70", "#5aa9f0", "■", "s"),
    "control": Look("#7b3fa0", "#cfa5f5", "◆", "D"),
    "policy": Look("#cf4f08", "#ffb37f", "●", "o"),
}
