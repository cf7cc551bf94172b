"""Rows with a request and its answer: Alpaca, Dolly, TRL's prompt and completion, question and answer. The answer may
be calls of the row's tools."""

from collections.abc import Mapping
from typing import Any

from stages.formats.format import COMPLETION, CONTEXT, PROMPT, THOUGHT, WEIGHT, Format, ParsedRow, calls_text, roles_of


class Answered(Format):
    roles = roles_of(PROMPT, CONTEXT, THOUGHT, WEIGHT, completion=COMPLETION)
    needs: tuple[str, ...] = ("prompt", "completion")

    def fits(self, row: Mapping[str, Any]) -> bool:
        return isinstance(row["prompt"], str | list)

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        messages, completion = self.read_prompt(row), row["completion"]
        if "tools" in row:
            completion = calls_text(completion) or completion
        answer = self.read_answer(completion, "completion", messages, row.get("reasoning"))
        return self.weighted_row(row, messages, answer)
