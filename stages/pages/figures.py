"""Figures as inline SVG. Ink takes the page's text colour, so that they suit light and dark."""

import io
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour until the SVG is written
COLOURS = {"base": "#8d99ae", "sft": "#2a9d8f", "control": "#b08d57", "policy": "#e76f51"}
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


def svg(figure: Figure) -> str:
    """The figure's SVG element, without a date, that scales to its column."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def rates(rows: dict[str, Any], models: dict[str, str]) -> str:
    """Pass rates with their intervals: a row per kind or task, a mark per model (role and title)."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 0.8 + 0.42 * len(rows)))
        names = sorted(rows, key=lambda name: rows[name]["policy"]["mean"])
        for place, model in enumerate(models):
            offset = 0.22 - 0.44 * place / (len(models) - 1)
            means = [100 * rows[name][model]["mean"] for name in names]
            low = [100 * rows[name][model]["low"] for name in names]
            high = [100 * rows[name][model]["high"] for name in names]
            places = [i + offset for i in range(len(names))]
            axes.hlines(places, low, high, color=COLOURS[model], linewidth=2, alpha=0.6)
            axes.plot(means, places, "o", color=COLOURS[model], markersize=5, label=models[model])
        axes.set_yticks(range(len(names)), [f"{name.replace('_', ' ')} ({rows[name]['prompts']})" for name in names])
        axes.set_xlim(-2, 102)
        axes.set_xlabel("prompts that pass all checks, %")
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=len(models))
        return svg(figure)


def calibration(title: str, margins: list[float]) -> list[str]:
    """Held-out pairs by their reward margin: the share preferred rightly against sigma(|margin|), which is what the
    Bradley-Terry model behind DPO says it should be, in thirds of the pairs."""
    if len(margins) < 6:
        return []
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.4))
        left.hist(margins, bins=15, color=COLOURS["sft"])
        left.axvline(0, color=INK, linewidth=1)
        decorate(left, f"{title}: margins of {len(margins)} held-out pairs", "nats; right of 0 is right")
        for third in np.array_split(np.array(sorted(margins, key=abs)), 3):
            said, found = float((1 / (1 + np.exp(-np.abs(third)))).mean()), float((third > 0).mean())
            right.plot(said, found, "o", color=COLOURS["policy"])
        right.plot([0.5, 1], [0.5, 1], color=INK, linewidth=1, linestyle=":")
        right.set_ylim(0, 1.05)
        right.set_ylabel("preferred rightly")
        decorate(right, f"{title}: calibration of margins", "said by sigmoid(margin)")
        return [svg(figure)]


def cost(seconds: dict[str, float]) -> str:
    """Where the time went: a bar per node."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 0.6 + 0.26 * len(seconds)))
        names = list(seconds)[::-1]
        axes.barh([name.replace("_", " ") for name in names], [seconds[n] for n in names], color=COLOURS["sft"])
        axes.set_xlabel("seconds")
        return svg(figure)


def panel(title: str, curve: list[dict[str, Any]], series: dict[str, str], xlabel: str = "step") -> str:
    """One small plot: metrics of a curve over steps; held-out ones with dots."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(3.6, 2.4))
        palette = iter(("#2a9d8f", "#e76f51", "#8d99ae"))
        for metric, label in series.items():
            points = [(p["step"], p[metric]) for p in curve if metric in p]
            if points:
                held_out = metric.startswith("eval_")
                axes.plot(
                    *zip(*points, strict=True), "o-" if held_out else "-", color=next(palette), label=label, ms=4
                )
        decorate(axes, title, xlabel)
        return svg(figure)


def decorate(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def sft(curve: list[dict[str, Any]]) -> list[str]:
    """SFT's loss, on training and validation."""
    return [panel("SFT: loss", curve, {"loss": "training", "eval_loss": "validation"})] if curve else []


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
