"""Conversations: OpenAI's messages, ShareGPT, and transcripts in one string (in `text` for Guanaco), also with plain
words before the turns: User: and Assistant:, or ### Instruction: and so on."""

from collections.abc import Mapping
from typing import Any

from stages.formats.format import CONTEXT, TURNS, WEIGHT, Format, ParsedRow, is_turns, roles_of
from stages.formats.readers.row import BadRow
from stages.formats.transcripts import ROLES, parse_transcript
from stages.formats.turns import COLUMN_AS_TEXT, role_of, role_order_error


def ends_with_request(value: Any, roles: Mapping[str, str] = ROLES) -> bool:
    """Return True for a conversation whose last turn is the user's. `roles`: by the names that the file has for them."""
    return is_turns(value) and isinstance(value, list) and role_of(value[-1], roles) == "user"


class Chat(Format):
    roles = roles_of(CONTEXT, WEIGHT, messages=f"{TURNS['messages']} text")
    needs = ("messages",)
    weighted = True

    def fits(self, row: Mapping[str, Any]) -> bool:
        value = row["messages"]
        if isinstance(value, list) and all(isinstance(turn, str) for turn in value):
            return len(value) % 2 == 0  # LIMA's texts alternate between user and assistant
        # conversations that end so are for `prompts`
        ends_open = ends_with_request(value, self.turns.roles)
        return is_turns(value) and (self.turns.cuts_requests() or not ends_open)

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        try:
            return self.trained_row(row)
        except BadRow as bad:
            if bad.ways or not isinstance(row["messages"], str):
                raise
            raise BadRow(bad.field or "messages", bad.reason, COLUMN_AS_TEXT) from None


class Transcribed(Chat):
    def fits(self, row: Mapping[str, Any]) -> bool:
        roles = [turn["role"] for turn in parse_transcript(row["messages"], plain=True) or []]
        return bool(roles) and roles[-1] == "assistant" and not role_order_error(tuple(roles))
