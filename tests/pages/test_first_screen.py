"""What the first screen says: the weakest true sentence, and a lamp for each question, asked or not."""

from typing import Any

import pytest

from stages.pages.first_screen import Lamp, lamps, sentence
from stages.pages.plots import Axis, histogram, line_chart

NODES: dict[str, Any] = {
    "dpo": {"stage": "dpo"},
    "label": {"stage": "label", "settings": {"labeler": "verifier"}},
}
UP, DOWN, SAME = ((0.06, 0.03, 0.09), (-0.06, -0.09, -0.03), (0.01, -0.02, 0.03))


def interval(numbers: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("mean", "low", "high"), numbers, strict=True))


def results(
    gain: tuple[float, float, float],
    new: tuple[float, float, float],
    over_control: tuple[float, float, float] | None,
) -> dict[str, Any]:
    primary = {"policy-sft": interval(gain), "note": "", "set": ""}
    models = {"sft": "SFT", "policy": "DPO"}
    if over_control:
        primary["policy-control"] = interval(over_control)
        models["control"] = "SFT on chosen"
    return {
        "gives_verdict": ["checks"],
        "judged": {},
        "models": models,
        "before": "sft",
        "main_difference": "policy-sft",
        "endpoint": "seen tasks",
        "primary": primary,
        "groups": {"seen tasks": primary, "unseen tasks": {"policy-sft": interval(new)}},
    }


@pytest.mark.parametrize(
    ("found", "said", "not_said"),
    [
        ((UP, SAME, SAME), ["own right answers helped", "DPO no more", "nothing more on new"], ["DPO helped"]),
        ((UP, SAME, UP), ["DPO helped", "more than plain SFT"], ["no more"]),
        ((UP, UP, DOWN), ["plain SFT on them helped more than DPO", "better on new tasks"], ["DPO helped"]),
        ((UP, SAME, None), ["DPO helped", "was not tested"], ["own right answers"]),
        ((SAME, DOWN, SAME), ["no measurable change", "worse on new tasks"], ["helped"]),
        ((DOWN, SAME, None), ["worse on what it practised"], ["helped"]),
    ],
)  # fmt: skip
def test_no_method_is_named_as_the_cause_that_its_control_equals(
    found: Any, said: list[str], not_said: list[str]
) -> None:
    text = sentence(results(*found), NODES, "it")
    assert [words for words in said if words not in text] == []
    assert [words for words in not_said if words in text] == []


def test_a_lamp_for_each_question_says_what_it_compares_or_how_to_ask() -> None:
    asked = lamps(results(UP, SAME, DOWN), NODES, "it", "python run.py")
    assert [lamp.state for lamp in asked] == ["good", "none", "bad"]
    assert [lamp.figure.split(" (")[0] for lamp in asked] == [
        "+6.0 over SFT",
        "+1.0 over SFT",
        "−6.0 over SFT on chosen",
    ]
    untested = lamps(results(UP, SAME, None), NODES, "it", "python run.py")[-1]
    assert untested == Lamp(
        "DPO or plain SFT?", "off", "not tested", "", "python run.py control=true"
    )
    assert len(lamps(results(UP, SAME, None), {}, "it", "")) == 2, "GRPO has no chosen answers"


def test_an_axis_holds_every_value_and_ends_at_round_numbers() -> None:
    for values in ([0.013, 0.87], [-3.2e-9, 5e-10], [7, 7], [-120.0, 44.0], [0.0]):
        axis = Axis.over(values)
        assert axis.low <= min(values) and max(values) <= axis.high
        assert 2 <= len(axis.ticks) <= 7
        assert all(0 <= axis.place(value) <= 100 for value in values)


def test_a_chart_has_a_line_for_what_was_measured_and_shows_its_last_number() -> None:
    curve = [{"step": step, "loss": 1 / step} for step in range(1, 200)]
    chart = line_chart("loss", curve, {"loss": "training", "eval_loss": "held out"}, "", "", "sft")
    assert chart is not None
    [line] = chart.lines
    assert len(line.shown) <= 40 and line.shown[-1].value == pytest.approx(1 / 199)
    assert line_chart("none", curve, {"kl": "KL"}, "", "", "sft") is None


def test_a_histogram_counts_every_value_once() -> None:
    bars = histogram([0, 1, 2, 3, 3, 90], (0, 2, 4))
    assert [(bar.name, bar.number) for bar in bars] == [("0–1", 2), ("2–3", 3), ("4+", 1)]
