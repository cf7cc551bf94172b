"""Preferences: a chosen and a rejected answer, in the columns of TRL, ShareGPT, Alpaca or Anthropic's HH."""

from collections.abc import Mapping
from typing import Any

from stages.formats.format import CONTEXT, PROMPT, TURNS, Format, ParsedRow, is_turns, roles_of
from stages.formats.readers.row import BadRow
from stages.store.records import Message

NAMES = "{0} {0}_response {0}_messages {0}_answer {0}_completion response_{0} answer_{0}"


class ChosenRejected(Format):
    roles = roles_of(TURNS, PROMPT, CONTEXT, chosen=NAMES.format("chosen"), rejected=NAMES.format("rejected"))
    needs = ("chosen", "rejected")
    compares = True

    def fits(self, row: Mapping[str, Any]) -> bool:
        return "prompt" in row or "messages" in row or is_turns(row["chosen"])

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        if is_whole(row["chosen"]) and is_whole(row["rejected"]):
            (prompt, chosen), (other_prompt, rejected) = (self.read_whole(row, side) for side in self.needs)
            if prompt != other_prompt:
                raise BadRow("rejected", "answers another prompt than chosen")
            self.validate_repeated_prompt(row, prompt)
        else:
            # If there is a prompt, `messages` repeats the prompt with the chosen answer.
            prompt_row = {role: value for role, value in row.items() if role != "messages" or "prompt" not in row}
            if not {"prompt", "messages"} & prompt_row.keys():
                raise BadRow("", "the prompt is missing, and chosen and rejected are not whole conversations")
            prompt = self.read_prompt(prompt_row)
            chosen, rejected = (self.read_answer(row[side], side, prompt) for side in self.needs)
        if chosen == rejected:
            raise BadRow("rejected", "is the same as chosen")
        return ParsedRow(prompt, [chosen, rejected], [1.0, 0.0])

    def validate_repeated_prompt(self, row: Mapping[str, Any], prompt: list[Message]) -> None:
        """Raise BadRow unless the prompt and the input of a row with whole conversations are in their turns."""
        prompt_text, contents = row.get("prompt"), [turn["content"].strip() for turn in prompt]
        if isinstance(prompt_text, str) and prompt_text.strip() not in contents:
            raise BadRow("prompt", "is not one of the turns of chosen")
        if isinstance(more := row.get("input"), str) and not any(more.strip() in content for content in contents):
            raise BadRow("input", "is not in the turns of chosen: type `columns: {COLUMN: null}` to leave it out")


def is_whole(value: Any) -> bool:
    """Return True if a value is a conversation of more than one turn."""
    return is_turns(value) and not (isinstance(value, list) and len(value) == 1)
