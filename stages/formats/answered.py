"""A request with its answer: Alpaca, Dolly, TRL's prompt and completion, question and answer. The answer may be calls
of the tools that the row offers."""

from collections.abc import Mapping
from typing import Any

from stages.formats.format import ASKED, BEFORE, COMPLETION, THOUGHT, WEIGHT, Format, ParsedRow, calls, roles_of


class Answered(Format):
    roles = roles_of(ASKED, BEFORE, THOUGHT, WEIGHT, completion=COMPLETION)
    needs: tuple[str, ...] = ("prompt", "completion")

    def fits(self, row: Mapping[str, Any]) -> bool:
        return isinstance(row["prompt"], str | list)

    def said(self, row: Mapping[str, Any]) -> ParsedRow:
        messages, completion = self.request(row), row["completion"]
        if "tools" in row:
            completion = calls(completion) or completion
        return self.learnt(row, messages, self.answer(completion, "completion", messages, row.get("reasoning")))
