"""Requests without answers, for models to answer."""

from collections.abc import Mapping
from typing import Any

from stages.formats.format import CONTEXT, PROMPT, TURNS, Format, ParsedRow, is_turns, roles_of
from stages.formats.turns import messages


class Prompts(Format):
    roles = roles_of(TURNS, PROMPT, CONTEXT)

    def fits(self, row: Mapping[str, Any]) -> bool:
        return isinstance(row.get("prompt"), str | list) or is_turns(row.get("messages"))

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        return ParsedRow(messages(self.read_prompt(row)), [])
