"""Rows with a request and its answer: Alpaca, Dolly, TRL's prompt and completion. The answer may be calls of the row's
tools. Also messages that end with a request, with its answer and its reasoning in other columns (Dolphin-R1)."""

from collections.abc import Mapping
from typing import Any

from stages.formats.chat import ends_with_request
from stages.formats.columns import parse_cell
from stages.formats.format import (
    COMPLETION,
    CONTEXT,
    PROMPT,
    THOUGHT,
    TURNS,
    WEIGHT,
    Format,
    ParsedRow,
    roles_of,
)
from stages.formats.turns import call_text

# Columns that checkers compare answers with. They need not be answers themselves.
CHECKED = {"target", "targets", "ground_truth"}


class Answered(Format):
    roles = roles_of(PROMPT, CONTEXT, THOUGHT, WEIGHT, completion=COMPLETION)
    needs: tuple[str, ...] = ("prompt", "completion")

    def fits(self, row: Mapping[str, Any]) -> bool:
        return isinstance(row["prompt"], str | list)

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        if "tools" in row:
            row = {**row, "completion": calls_text(row["completion"]) or row["completion"]}
        return self.trained_row(row)


class Continued(Answered):
    answers = " ".join(name for name in COMPLETION.split() if name not in CHECKED)
    roles = roles_of(TURNS, CONTEXT, THOUGHT, WEIGHT, completion=answers)
    needs = ("messages", "completion")

    def fits(self, row: Mapping[str, Any]) -> bool:
        return ends_with_request(row["messages"], self.turns.roles)


def calls_text(value: Any) -> str | None:
    """Return a list of tool calls as text; None if the value is not such a list."""
    parsed = parse_cell(value)
    if (
        not isinstance(parsed, list)
        or not parsed
        or not all(isinstance(c, dict) and "arguments" in c for c in parsed)
    ):
        return None
    return "\n".join(call_text(call, "completion") for call in parsed)
