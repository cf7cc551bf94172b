"""Preferences: a chosen and a rejected answer, in the columns of TRL, ShareGPT, Alpaca, ms-swift or Anthropic's HH.
Several rejected answers are as many pairs."""

from collections.abc import Mapping
from typing import Any

from stages.formats.chat import ends_with_request
from stages.formats.columns import parse_cell
from stages.formats.format import (
    CONTEXT,
    PROMPT,
    TURNS,
    Format,
    ParsedRow,
    is_turns,
    is_whole,
    roles_of,
)
from stages.formats.readers.row import LEAVE_OUT, BadRow
from stages.formats.references import is_texts
from stages.formats.turns import messages, split_system
from stages.store.records import Message

NAMES = "{0} {0}_response {0}_messages {0}_answer {0}_completion response_{0} answer_{0}"
SCORES = "score_{0} {0}_score rating_{0} {0}_rating reward_{0} {0}_reward"


class ChosenRejected(Format):
    roles = roles_of(
        TURNS,
        PROMPT,
        CONTEXT,
        chosen=NAMES.format("chosen"),
        rejected=NAMES.format("rejected"),
        score_chosen=SCORES.format("chosen"),
        score_rejected=SCORES.format("rejected"),
        margin="margin score_margin preference_margin",
    )
    needs: tuple[str, ...] = ("chosen", "rejected")
    models = "chosen_model+rejected_model model_chosen+model_rejected"
    compares = True

    def fits(self, row: Mapping[str, Any]) -> bool:
        return "prompt" in row or "messages" in row or is_turns(row["chosen"])

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        pairs = [self.parse_pair({**row, "rejected": each}) for each in rejected_answers(row)]
        if any(pair.messages != pairs[0].messages for pair in pairs):
            raise BadRow("rejected", "its conversations part from chosen at different turns")
        sides = [pair.continuations or [] for pair in pairs]
        return pairs[0]._replace(
            answers=[pairs[0].answers[0], *(pair.answers[1] for pair in pairs)],
            scores=[1.0, *[0.0] * len(pairs)],
            continuations=[sides[0][0], *(side[1] for side in sides)],
            contradicts=is_less(row.get("score_chosen"), row.get("score_rejected"))
            or is_less(row.get("margin"), 0),
        )

    def parse_pair(self, row: Mapping[str, Any]) -> ParsedRow:
        """Return the parsed row of one chosen and one rejected answer."""
        # If there is a prompt, `messages` repeats the prompt with the chosen answer.
        row = {
            role: value for role, value in row.items() if role != "messages" or "prompt" not in row
        }
        if all(is_whole(row[side]) for side in self.needs):
            parsed = self.compared_row(
                {side: self.read_whole(row, side) for side in self.needs}, [1.0, 0.0]
            )
            self.validate_repeated_prompt(row, parsed.messages)
            return parsed._replace(messages=self.with_system(row, parsed.messages))
        if not {"prompt", "messages"} & row.keys():
            raise BadRow(
                "", "the prompt is missing, and chosen and rejected are not whole conversations"
            )
        prompt = self.read_prompt(row)
        return self.compared_row(
            {side: self.read_continuation(row, side, prompt) for side in self.needs}, [1.0, 0.0]
        )

    def with_system(self, row: Mapping[str, Any], prompt: list[Message]) -> list[Message]:
        """Return the shared prompt, after the system message of the row's own turns if it has none.
        Raise BadRow unless it begins with those turns."""
        if not isinstance(row.get("prompt"), list):
            return prompt
        system, spoken = split_system(self.read_prompt(row))
        shared = [turn for turn in prompt if turn["role"] != "system"]
        if shared[: len(spoken)] != messages(spoken):
            raise BadRow("prompt", "is not the beginning of chosen", LEAVE_OUT)
        return [*messages([system]), *prompt] if system and shared == prompt else prompt

    def validate_repeated_prompt(self, row: Mapping[str, Any], prompt: list[Message]) -> None:
        """Raise BadRow unless the prompt and the input of a row with whole conversations are in their turns."""
        prompt_text, contents = row.get("prompt"), [turn["content"].strip() for turn in prompt]
        if isinstance(prompt_text, str) and prompt_text.strip() not in contents:
            raise BadRow("prompt", "is not one of the turns of chosen", LEAVE_OUT)
        if isinstance(more := row.get("input"), str) and not any(
            more.strip() in content for content in contents
        ):
            raise BadRow("input", "is not in the turns of chosen", LEAVE_OUT)


def rejected_answers(row: Mapping[str, Any]) -> list[Any]:
    """Return each rejected answer of a row. A list in JSON, as a cell of CSV has it, is several answers, unless the
    chosen answer is such a list, too."""
    rejected = row["rejected"]
    if is_texts(parse_cell(rejected)) and not is_texts(parse_cell(row.get("chosen"))):
        return list(parse_cell(rejected))
    is_one = not isinstance(rejected, list) or any(isinstance(each, dict) for each in rejected)
    return [rejected] if is_one else rejected


def is_less(first: Any, second: Any) -> bool:
    """Return True if both are numbers, also as text, and the first is the lower one."""
    try:
        return float(first) < float(second)
    except (TypeError, ValueError):
        return False


class Rejected(ChosenRejected):
    """A conversation whose last answer is the chosen one, and the rejected one (ms-swift)."""

    roles = {  # noqa: RUF012
        role: names for role, names in ChosenRejected.roles.items() if role != "chosen"
    }
    needs = ("messages", "rejected")

    def fits(self, row: Mapping[str, Any]) -> bool:
        return is_turns(row["messages"]) and not ends_with_request(
            row["messages"], self.turns.roles
        )

    def parse_pair(self, row: Mapping[str, Any]) -> ParsedRow:
        turns = self.turns.order(self.read_conversation(row))
        rejected = self.read_continuation(row, "rejected", turns[:-1])
        return self.compared_row({"messages": turns, "rejected": rejected}, [1.0, 0.0])
