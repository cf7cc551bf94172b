"""What the first screen says: the weakest true sentence, and a lamp for each question, asked or not."""

from typing import Any

import pytest

from stages.evaluation.results import Results
from stages.pages.first_screen import lamps, sentence
from tests.evaluation.made_results import Bounds, group, results

NODES: dict[str, Any] = {
    "dpo": {"stage": "dpo"},
    "label": {"stage": "label", "settings": {"labeler": "verifier"}},
}
UP = (0.06, 0.03, 0.09)
DOWN = (-0.06, -0.09, -0.03)
SAME = (0.01, -0.02, 0.03)


def measured(gain: Bounds, new: Bounds, over_control: Bounds | None) -> Results:
    """Return results with these changes: on seen tasks, on new ones, and on seen ones over the control."""
    models = {"sft": "SFT", "policy": "DPO"}
    changes = {"policy-sft": gain}
    if over_control:
        changes["policy-control"] = over_control
        models["control"] = "SFT on chosen"
    groups = {"seen tasks": group(changes), "unseen tasks": group({"policy-sft": new})}
    return results(groups, models)


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
    text = sentence(measured(*gains), NODES, "it")
    assert present in text
    assert absent not in text


def test_a_lamp_for_each_question_says_what_it_compares_or_how_to_ask() -> None:
    answered = lamps(measured(UP, SAME, DOWN), NODES, "it", "python run.py")
    assert [lamp.state for lamp in answered] == ["good", "none", "bad"]
    assert answered[0].figure.startswith("+6.0 over SFT ")
    untested = lamps(measured(UP, SAME, None), NODES, "it", "python run.py")[-1]
    assert (untested.state, untested.command) == ("off", "python run.py control=true")
    assert len(lamps(measured(UP, SAME, None), {}, "it", "")) == 2, "GRPO has no chosen answers"
