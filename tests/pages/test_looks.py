"""Colours that every eye can distinguish from each other and from the page."""

import re
from itertools import combinations, pairwise

import pytest

from stages.config.installation import ROOT
from stages.pages.environment import LOOKS

STYLE = (ROOT / "stages/pages/layout.html.jinja").read_text()


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    darker, lighter = sorted(map(luminance, (a, b)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize(("scheme", "place"), [("light", 0), ("dark", 1)])
def test_every_role_stands_out_from_the_page_and_from_the_others(scheme: str, place: int) -> None:
    paper = re.findall(r"--paper: (#\w+);", STYLE)[place]
    paper = "#ffffff" if paper == "#fff" else paper
    panel = re.findall(r"--panel: (#\w+);", STYLE)[place]
    colours = {role: getattr(look, scheme) for role, look in LOOKS.items()}
    assert {
        role: c for role, c in colours.items() if min(contrast(c, paper), contrast(c, panel)) < 3
    } == {}
    ordered = sorted(colours.values(), key=luminance)
    assert [c for c in pairwise(ordered) if contrast(*c) < 1.15] == [], "lightness tells them apart"


def test_shapes_differ() -> None:
    assert all(a.glyph != b.glyph for a, b in combinations(LOOKS.values(), 2))
