"""Conversations: OpenAI's messages, ShareGPT, transcripts in one string (Guanaco writes them into `text`)."""

from collections.abc import Mapping
from typing import Any

from stages.formats.format import BEFORE, TURNS, WEIGHT, Format, ParsedRow, is_turns, roles_of
from stages.formats.turns import ROLES, WHO, said, split_off_answer


def ends_with_answer(value: Any) -> bool:
    """Whether the last turn is not the user's: requests alone are for `prompts`."""
    last = value[-1] if isinstance(value, list) else {}
    return ROLES.get(str(said(last, WHO)).lower()) != "user"


class Chat(Format):
    roles = roles_of(BEFORE, WEIGHT, messages=f"{TURNS['messages']} text")
    needs = ("messages",)
    weighed = ("messages",)

    def fits(self, row: Mapping[str, Any]) -> bool:
        value = row["messages"]
        if isinstance(value, list) and all(isinstance(turn, str) for turn in value):
            return len(value) % 2 == 0  # LIMA's: they take turns
        return is_turns(value) and ends_with_answer(value)

    def said(self, row: Mapping[str, Any]) -> ParsedRow:
        return self.learnt(row, *split_off_answer(self.asked(row)))
