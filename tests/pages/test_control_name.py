"""The control has one name on a screen: in titles, differences, the sentence, the lamp and the chain."""

import re
from dataclasses import replace

from stages.evaluation.results import Opposed, Waiting
from stages.pages.control_name import CONTROL, CONTROL_TITLE, name_control
from stages.pages.first_screen import STEPS, lamps, sentence
from tests.pages.test_first_screen import NODES, SAME, UP, measured

OTHER_NAMES = re.compile(r"control|SFT on chosen|further", re.IGNORECASE)


def test_the_control_has_one_name_wherever_a_page_names_it() -> None:
    made = measured(UP, SAME, SAME)
    stored = replace(
        made,
        models={**made.models, "control": "Control"},  # as evaluations have it
        differences={"policy-control": "DPO − Control", "policy-sft": "DPO − SFT"},
        judged={"control": Waiting(Opposed("Control", "human", 31, 0), 31, 0.2)},
    )
    named = name_control(stored)
    assert CONTROL_TITLE.lower() == CONTROL.lower()
    assert named.judged["control"].opposed.title == CONTROL_TITLE
    assert named.differences["policy-control"] == f"DPO − {CONTROL_TITLE}"
    lamp = lamps(named, NODES, "it", "")[-1]
    texts = [*named.models.values(), *named.differences.values(), STEPS["control"][0]]
    texts += [sentence(named, NODES, "it"), lamp.title, lamp.figure]
    assert not [text for text in texts if OTHER_NAMES.search(text)]
    assert CONTROL in lamp.title and CONTROL in lamp.figure
    assert "control" not in name_control(measured(UP, SAME, None)).models


def test_a_control_that_draws_keeps_the_name_of_what_it_is() -> None:
    made = measured(UP, SAME, SAME)
    for title, words in {
        "Best draws": "best draws",
        "Best of one pool": "best of one pool",
    }.items():
        results = name_control(replace(made, models={**made.models, "control": title}))
        assert results.models["control"] == title
        of_draws = {
            **NODES,
            "eval": {**NODES.get("eval", {}), "inputs": {"policy": {"stage": "grpo"}}},
        }
        lamp = lamps(results, of_draws, "it", "")[-1]
        assert words in lamp.title and words in lamp.figure
        assert words in sentence(results, of_draws, "it")
        assert CONTROL not in sentence(results, of_draws, "it")
    untested = lamps(measured(UP, SAME, None), of_draws, "it", "python run.py")[-1]
    assert (untested.state, untested.command) == ("off", "python run.py control=true")
