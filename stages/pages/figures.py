"""Figures as inline SVG. Ink takes the page's text colour and a model its own, in light and dark."""

import hashlib
import io
import re
from itertools import chain, repeat
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.pages.environment import LOOKS
from stages.store.numbers import signed

INK = "#010203"  # stands for the page's text colour until the SVG is written
COLOURS = {role: look.light for role, look in LOOKS.items()}  # until the SVG is written, as INK
REFERENCE = re.compile(r'(url\(#|href="#)([\w.-]+)')  # to an element of the same SVG
PANEL = (3.6, 2.4)  # inches: as wide as a phone, so that text keeps its size
STYLE: dict[str, Any] = {
    # A label says what it says: in names of files, $, ^, _ and \\ are no mathematics.
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "plumbline",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
}


def svg(figure: Figure, title: str, description: str) -> str:
    """The figure's SVG element, without a date, that scales to its column. It is named and described for those who do
    not see it, its ids are no other figure's, and its colours are the page's."""
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
    told = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    start, end = text.split(">", 1)
    return f'{start} role="img">{told}{end}'.replace(INK, "currentColor")


def calibration(title: str, margins: list[float]) -> list[str]:
    """Held-out pairs by their reward margin: the share preferred rightly against sigma(|margin|), which is what the
    Bradley-Terry model behind DPO says it should be, in thirds of the pairs."""
    if len(margins) < 6:
        return []
    right = sum(margin > 0 for margin in margins)
    with plt.rc_context(STYLE):
        spread, axes = plt.subplots(figsize=PANEL)
        axes.hist(margins, bins=15, color=COLOURS["policy"])
        axes.axvline(0, color=INK, linewidth=1)
        decorate(axes, f"{title}: margins of held-out pairs", "nats; right of 0 is right")
        told, axes = plt.subplots(figsize=PANEL)
        points = []
        for third in np.array_split(np.array(sorted(margins, key=abs)), 3):
            points.append((float((1 / (1 + np.exp(-np.abs(third)))).mean()), float((third > 0).mean())))
        axes.plot(*zip(*points, strict=True), LOOKS["policy"].marker, color=COLOURS["policy"])
        axes.plot([0.5, 1], [0.5, 1], color=INK, linewidth=1, linestyle=":")
        axes.set_ylim(0, 1.05)
        axes.set_ylabel("preferred rightly")
        decorate(axes, f"{title}: calibration of margins", "said by sigmoid(margin)")
        thirds = ", ".join(f"{found:.0%} where {said:.0%} was said" for said, found in points)
        return [
            svg(spread, f"{title}: margins of held-out pairs", f"{right} of {len(margins)} are right of 0."),
            svg(told, f"{title}: calibration of margins", f"Preferred rightly, by thirds of the pairs: {thirds}."),
        ]


def panel(
    title: str, curve: list[dict[str, Any]], series: dict[str, str], xlabel: str = "step", role: str = "policy"
) -> str:
    """One small plot: metrics of a curve over steps, the first in the colour of the model that is trained, others
    dashed; held-out ones with marks. Its description tells first and last values."""
    told = []
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=PANEL)
        styles = chain([(COLOURS[role], "-")], repeat((INK, "--")))
        for (metric, label), (colour, line) in zip(series.items(), styles, strict=False):
            points = [(p["step"], p[metric]) for p in curve if metric in p]
            if points:
                marked = "o" if metric.startswith("eval_") else ""
                axes.plot(*zip(*points, strict=True), marked + line, color=colour, label=label, ms=4)
                first, last = (signed(points[i][1], "{:z.3g}") for i in (0, -1))
                told.append(f"{label} from {first} to {last} at step {points[-1][0]}")
        decorate(axes, title, xlabel)
        return svg(figure, title, f"{'; '.join(told) or 'nothing was measured'}.")


def decorate(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)


def sft(curve: list[dict[str, Any]]) -> list[str]:
    """SFT's loss, on training and validation."""
    series = {"loss": "training", "eval_loss": "validation"}
    return [panel("SFT: loss", curve, series, role="sft")] if curve else []


def preference(title: str, curve: list[dict[str, Any]]) -> list[str]:
    """Loss, margins, accuracy and log-probs of a preference objective, under TRL's names."""
    return [
        panel(f"{title}: loss", curve, {"loss": "training", "eval_loss": "held out"}),
        panel(f"{title}: rewards/margins", curve, {"rewards/margins": "training", "eval_rewards/margins": "held out"}),
        panel(
            f"{title}: rewards/accuracies",
            curve,
            {"rewards/accuracies": "training", "eval_rewards/accuracies": "held out"},
        ),
        panel(f"{title}: log-probs", curve, {"logps/chosen": "chosen", "logps/rejected": "rejected"}),
    ]
