"""A user's file that only SFT learns from is named, before a policy learns from other prompts."""

import pytest

from stages.preflight.sources import unasked_files_message
from tests.helpers import settings

DEMONSTRATIONS = "docs/examples/demonstrations.jsonl"
FILE = ("recipe=tiny", f"data.path={DEMONSTRATIONS}")
ASKED = (
    "data.file.splits={sft: 0.5, preference: 0.45, validation: 0.05}",
    "data.tasks.preference=0",
    "label=own",
    "label.own={file: docs/examples/brief.py, name: Brief}",
)


@pytest.mark.parametrize("objective", ["align=dpo", "align=grpo", "align=kto"])
def test_a_file_whose_prompts_no_model_answers_in_training_is_named(objective: str) -> None:
    message = unasked_files_message(settings(*FILE, objective))
    assert message and message.startswith(DEMONSTRATIONS)
    assert ASKED[0] in message and ASKED[1] in message


@pytest.mark.parametrize(
    "line",
    [
        ("recipe=tiny",),
        (*FILE, *ASKED),
        (*FILE, "align=none"),
        ("recipe=from_preferences", "data.path=docs/examples/preferences.jsonl"),
        (*FILE, "label=dataset", "label.path=docs/examples/preferences.jsonl"),
    ],
)
def test_nothing_is_said_where_the_policy_learns_from_what_is_given(line: tuple[str, ...]) -> None:
    assert unasked_files_message(settings(*line)) is None
