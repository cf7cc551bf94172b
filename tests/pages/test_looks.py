"""Colours that every eye can distinguish from each other and from the page."""

import re
from itertools import pairwise, product

import pytest

from stages.config.installation import ROOT
from stages.pages.environment import LOOKS

STYLE = (ROOT / "stages/pages/layout.html.jinja").read_text()


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    total = 0.0
    for start, weight in ((1, 0.2126), (3, 0.7152), (5, 0.0722)):
        part = int(colour[start : start + 2], 16) / 255
        total += weight * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
    return total


def contrast(a: str, b: str) -> float:
    darker, lighter = sorted(map(luminance, (a, b)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize(("scheme", "place"), [("light", 0), ("dark", 1)])
def test_every_role_stands_out_from_the_page_and_from_the_others(scheme: str, place: int) -> None:
    papers = [re.findall(rf"--{name}: (#\w+);", STYLE)[place] for name in ("paper", "panel")]
    papers = [paper.replace("#fff", "#ffffff") if len(paper) == 4 else paper for paper in papers]
    colours = [getattr(look, scheme) for look in LOOKS.values()]
    for paper, colour in product(papers, colours):
        assert contrast(paper, colour) >= 3, (paper, colour)
    for darker, lighter in pairwise(sorted(colours, key=luminance)):
        assert contrast(darker, lighter) >= 1.15, "lightness tells them apart"
