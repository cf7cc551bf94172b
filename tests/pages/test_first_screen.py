"""What the first screen says: the weakest true sentence, and a lamp for each question, asked or not."""

from typing import Any

import pytest

from stages.pages.first_screen import lamps, sentence

NODES: dict[str, Any] = {
    "dpo": {"stage": "dpo"},
    "label": {"stage": "label", "settings": {"labeler": "verifier"}},
}
UP = (0.06, 0.03, 0.09)
DOWN = (-0.06, -0.09, -0.03)
SAME = (0.01, -0.02, 0.03)


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
    ("gains", "present", "absent"),
    [
        ((UP, SAME, SAME), "own right answers helped", "DPO helped"),
        ((UP, SAME, UP), "DPO helped", "no more"),
        ((UP, UP, DOWN), "plain SFT on them helped more than DPO", "DPO helped"),
        ((UP, SAME, None), "was not tested", "own right answers"),
        ((SAME, DOWN, SAME), "worse on new tasks", "helped"),
        ((DOWN, SAME, None), "worse on what it practised", "helped"),
    ],
)
def test_no_method_is_named_as_the_cause_that_its_control_equals(
    gains: Any, present: str, absent: str
) -> None:
    text = sentence(results(*gains), NODES, "it")
    assert present in text
    assert absent not in text


def test_a_lamp_for_each_question_says_what_it_compares_or_how_to_ask() -> None:
    answered = lamps(results(UP, SAME, DOWN), NODES, "it", "python run.py")
    assert [lamp.state for lamp in answered] == ["good", "none", "bad"]
    assert answered[0].figure.startswith("+6.0 over SFT ")
    untested = lamps(results(UP, SAME, None), NODES, "it", "python run.py")[-1]
    assert (untested.state, untested.command) == ("off", "python run.py control=true")
    assert len(lamps(results(UP, SAME, None), {}, "it", "")) == 2, "GRPO has no chosen answers"
