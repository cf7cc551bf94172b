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
            # Beside a prompt, `messages` repeats it with the chosen answer.
            prompt_row = {role: value for role, value in row.items() if role != "messages" or "prompt" not in row}
            if not {"prompt", "messages"} & prompt_row.keys():
                raise BadRow("", "no prompt, and chosen and rejected are no whole conversations")
            prompt = self.read_prompt(prompt_row)
            chosen, rejected = (self.read_answer(row[side], side, prompt) for side in self.needs)
        if chosen == rejected:
            raise BadRow("rejected", "is the same as chosen")
        return ParsedRow(prompt, [chosen, rejected], [1.0, 0.0])

    def validate_repeated_prompt(self, row: Mapping[str, Any], prompt: list[Message]) -> None:
        """A prompt beside whole conversations repeats a turn of theirs, and what belongs to it stands there too."""
        prompt_text, contents = row.get("prompt"), [turn["content"].strip() for turn in prompt]
        if isinstance(prompt_text, str) and prompt_text.strip() not in contents:
            raise BadRow("prompt", "is none of the turns of chosen")
        if isinstance(input_text := row.get("input"), str) and not any(
            input_text.strip() in content for content in contents
        ):
            raise BadRow("input", "is in none of the turns of chosen: `columns: {COLUMN: null}` leaves it out")


def is_whole(value: Any) -> bool:
    """Whether a value is a conversation of more than one turn."""
    return is_turns(value) and not (isinstance(value, list) and len(value) == 1)
