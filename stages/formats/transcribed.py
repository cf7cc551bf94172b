"""Conversations as texts with plain words before the turns: User: and Assistant:, or ### Instruction: and so on."""

from collections.abc import Mapping
from typing import Any

from stages.formats.chat import Chat
from stages.formats.transcripts import parse_transcript


class Transcribed(Chat):
    def fits(self, row: Mapping[str, Any]) -> bool:
        roles = [turn["role"] for turn in parse_transcript(row["messages"], plain=True) or []]
        return "user" in roles and roles[-1] == "assistant"
