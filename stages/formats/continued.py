"""Messages that end with a request, with its answer, and maybe its reasoning, in other columns (Dolphin-R1)."""

from collections.abc import Mapping
from typing import Any

from stages.formats.answered import Answered
from stages.formats.chat import ends_with_answer
from stages.formats.format import COMPLETION, CONTEXT, THOUGHT, TURNS, WEIGHT, is_turns, roles_of

# Columns that checkers compare answers with. They need not be answers themselves.
CHECKED = {"target", "targets", "ground_truth"}


class Continued(Answered):
    answers = " ".join(name for name in COMPLETION.split() if name not in CHECKED)
    roles = roles_of(TURNS, CONTEXT, THOUGHT, WEIGHT, completion=answers)
    needs = ("messages", "completion")

    def fits(self, row: Mapping[str, Any]) -> bool:
        return is_turns(row["messages"]) and not ends_with_answer(row["messages"])
