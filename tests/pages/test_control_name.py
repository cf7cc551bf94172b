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
