"""Requests without answers, to be sampled."""

from collections.abc import Mapping
from typing import Any

from stages.formats.format import ASKED, BEFORE, TURNS, Format, ParsedRow, is_turns, roles_of


class Prompts(Format):
    roles = roles_of(TURNS, ASKED, BEFORE)

    def fits(self, row: Mapping[str, Any]) -> bool:
        return isinstance(row.get("prompt"), str | list) or is_turns(row.get("messages"))

    def said(self, row: Mapping[str, Any]) -> ParsedRow:
        return ParsedRow(self.request(row), [])
