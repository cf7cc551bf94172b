"""Conversations: OpenAI's messages, ShareGPT, and transcripts in one string (in `text` for Guanaco), also with plain
words before the turns: User: and Assistant:, or ### Instruction: and so on."""

from collections.abc import Mapping
from typing import Any

from stages.formats.format import CONTEXT, TURNS, WEIGHT, Format, ParsedRow, is_turns, roles_of
from stages.formats.transcripts import parse_transcript
from stages.formats.turns import ROLE_KEYS, ROLES, first_value, split_off_answer


def ends_with_answer(value: Any) -> bool:
    """Return True if the last turn is not the user's. Conversations that end with a request are for `prompts`."""
    last = value[-1] if isinstance(value, list) else {}
    return ROLES.get(str(first_value(last, ROLE_KEYS)).lower()) != "user"


class Chat(Format):
    roles = roles_of(CONTEXT, WEIGHT, messages=f"{TURNS['messages']} text")
    needs = ("messages",)
    weighted_roles = ("messages",)

    def fits(self, row: Mapping[str, Any]) -> bool:
        value = row["messages"]
        if isinstance(value, list) and all(isinstance(turn, str) for turn in value):
            return len(value) % 2 == 0  # LIMA's texts alternate between user and assistant
        return is_turns(value) and ends_with_answer(value)

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        return self.weighted_row(row, *split_off_answer(self.read_conversation(row)))


class Transcribed(Chat):
    def fits(self, row: Mapping[str, Any]) -> bool:
        roles = [turn["role"] for turn in parse_transcript(row["messages"], plain=True) or []]
        return "user" in roles and roles[-1] == "assistant"
