"""Figures as inline SVG, in the page's text colour and the models' colours, on light and dark pages."""

import hashlib
import io
import re
from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from stages.config.installation import read_beside
from stages.evaluation.intervals import Interval
from stages.pages.environment import LOOKS
from stages.store.numbers import signed

# placeholders that `svg` replaces by CSS variables
COLOURS = {role: look.light for role, look in LOOKS.items()}
REFERENCE = re.compile(r'(url\(#|href="#)([\w.-]+)')  # a reference to an element of the same SVG
Curve = list[dict[str, Any]]
PANEL = (3.6, 2.4)  # inches: as wide as a phone, so that text keeps its size
STYLE: dict[str, Any] = read_beside(__file__)["style"]
PANELS: dict[str, dict[str, dict[str, str]]] = read_beside(__file__)["panels"]
INK: str = STYLE["text.color"]  # placeholder that `svg` replaces by the page's text colour


def svg(figure: Figure, title: str, description: str) -> str:
    """Return the figure's SVG element, which scales to its column and has no date. It has a title and a description
    for screen readers, ids unique on the page, and the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    own = f"plot-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    used = {name for _, name in REFERENCE.findall(text)}
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{own}-{m[1]}"' if m[1] in used else "", text)
    text = REFERENCE.sub(rf"\g<1>{own}-\2", text)
    for role, look in LOOKS.items():
        text = text.replace(look.light, f"var(--{role})")
    description_tags = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    start, end = text.split(">", 1)
    return f'{start} role="img">{description_tags}{end}'.replace(INK, "currentColor")


def panel(
    title: str, curve: Curve, series: dict[str, str], xlabel: str = "step", role: str = "policy"
) -> str:
    """Draw metrics of a curve over steps: the first in the model's colour, others dashed, held-out ones with marks."""
    descriptions = []
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=PANEL)
        styles = chain([(COLOURS[role], "-")], repeat((INK, "--")))
        for (metric, label), (colour, line) in zip(series.items(), styles, strict=False):
            if points := [(p["step"], p[metric]) for p in curve if metric in p]:
                marked = "o" if metric.startswith("eval_") else ""
                axes.plot(
                    *zip(*points, strict=True), marked + line, color=colour, label=label, ms=4
                )
                first, last = (signed(points[i][1], "{:z.3g}") for i in (0, -1))
                descriptions.append(f"{label} from {first} to {last} at step {points[-1][0]}")
        decorate(axes, title, xlabel)
        return svg(figure, title, f"{'; '.join(descriptions) or 'nothing was measured'}.")


class Point(NamedTuple):
    """A model: its KL from SFT, its pass rate, and whether no other model has a higher rate at this KL or less."""

    kl: float
    rate: Interval
    is_sft: bool
    is_best: bool


def frontier(title: str, points: Sequence[Point]) -> str:
    """Draw pass rates with their intervals against KL. Numbers are the models' rows in the page's table."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(2 * PANEL[0], 1.5 * PANEL[1]))
        for number, (kl, rate, is_sft, is_best) in enumerate(points, 1):
            role = "sft" if is_sft else "policy"
            arms = [[rate.mean - rate.low], [rate.high - rate.mean]]
            fill = "full" if is_sft or is_best else "none"
            axes.errorbar(
                kl, rate.mean, arms, fmt=LOOKS[role].marker, color=COLOURS[role], fillstyle=fill
            )
            axes.annotate(str(number), (kl, rate.mean), xytext=(5, 5), textcoords="offset points")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylabel("share of prompts that pass")
        decorate(axes, title, "KL from SFT, nats per token")
        return svg(figure, title, "The table has the same figures.")


def decorate(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)


def training(stage: str, title: str, curve: Curve) -> list[str]:
    """Draw the training of a stage that trains a language model."""
    role = "sft" if stage == "sft" else "policy"
    return [
        panel(f"{title}: {name}", curve, series, role=role)
        for name, series in PANELS[stage].items()
    ]
