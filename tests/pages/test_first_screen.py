"""What the first screen says: the weakest true sentence, and a lamp for each question, asked or not."""

from typing import Any

import pytest

from stages.config.exit_codes import GateCode
from stages.config.installation import PROGRAM, ROOT
from stages.evaluation.claims import REHEARSAL, gate
from stages.evaluation.results import Results
from stages.pages.first_screen import lamps, next_for_files, sentence
from tests.evaluation.made_results import Bounds, group, results

EVALUATION: dict[str, Any] = {"stage": "eval", "inputs": {"policy": {"stage": "dpo"}}}
NODES: dict[str, Any] = {
    "dpo": {"stage": "dpo"},
    "eval": EVALUATION,
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
    assert answered[0].figure.startswith("+6.0 points, +3.0 to +9.0")
    assert answered[0].figure.endswith("over SFT")
    untested = lamps(measured(UP, SAME, None), NODES, "it", "python run.py")[-1]
    assert (untested.state, untested.command) == ("off", "python run.py control=true")
    of_kto = {**NODES, "eval": {**EVALUATION, "inputs": {"policy": {"stage": "kto"}}}}
    assert len(lamps(measured(UP, SAME, None), of_kto, "it", "")) == 2, "DPO's is no control of KTO"


@pytest.mark.parametrize(
    ("code", "note", "state", "word"),
    [
        (GateCode.passes, "", "good", "not worse than SFT"),
        (GateCode.worse, "", "bad", "worse than SFT"),
        (GateCode.cannot_tell, "", "none", "unclear"),
        (GateCode.passes, REHEARSAL, "none", REHEARSAL),
    ],
)
def test_the_last_lamp_is_the_gates_claim(code: GateCode, note: str, state: str, word: str) -> None:
    ship = gate(code, "needs ~900 prompts", note=note)
    lamp = lamps(measured(UP, SAME, DOWN), NODES, "it", "python run.py", ship)[-1]
    assert (lamp.state, lamp.word) == (state, word)
    assert lamp.figure == ("" if note else ship.figure)


def taught(by_sft: Bounds, by_dpo: Bounds, note: str = "") -> Results:
    """Return results of an SFT that takes a base from nothing to its own rate, and of DPO after it."""
    rates: dict[str, Bounds] = {"base": (0.0, 0.0, 0.01), "sft": by_sft, "sft-base": by_sft}
    return results({"seen tasks": group(rates | {"policy-sft": by_dpo}, note=note)})


@pytest.mark.parametrize(
    ("by_sft", "by_dpo", "first", "then"),
    [
        (
            (0.75, 0.7, 0.8),
            SAME,
            "SFT helped on what it practised: 0% to 75%. ",
            "DPO added nothing",
        ),
        ((0.75, 0.7, 0.8), UP, "SFT helped on what it practised: 0% to 75%. ", "DPO helped"),
        ((-0.3, -0.4, -0.2), SAME, "SFT made it worse on what it practised", "DPO added nothing"),
        ((0.04, 0.01, 0.07), UP, "DPO helped", ""),
        (SAME, SAME, "DPO made no measurable change", ""),
    ],
)
def test_the_headline_names_first_what_changed_most(
    by_sft: Bounds, by_dpo: Bounds, first: str, then: str
) -> None:
    text = sentence(taught(by_sft, by_dpo), {}, "it")
    assert text.startswith(first)
    assert then in text


def test_sft_is_not_named_where_a_note_says_that_nothing_can_be_said() -> None:
    noted = taught((0.75, 0.7, 0.8), SAME, note="too few tasks to say")
    assert "SFT" not in sentence(noted, {}, "it")


def test_the_command_for_a_file_of_ones_own_names_the_program_that_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(PROGRAM, "plumbline")
    assert next_for_files(NODES).startswith("plumbline recipe=from_preferences ")


def test_no_message_names_a_program_that_may_not_be_there() -> None:
    named = [
        path.name
        for path in (ROOT / "stages").rglob("*")
        if path.suffix in (".py", ".yaml", ".jinja") and '"python run.py' in path.read_text()
    ]
    assert sorted(named) == ["installation.py", "process.py"], "where the name is looked up"
    for texts in (ROOT / "stages").rglob("finding.yaml"):
        assert "run.py" not in texts.read_text()
