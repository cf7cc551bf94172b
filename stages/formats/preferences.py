"""Rows become preferences: a prompt with a chosen and a rejected answer, in TRL's, ShareGPT's or Alpaca's columns."""

from typing import Any

from stages.formats.columns import unused
from stages.formats.conversations import conversation, message, text
from stages.formats.files import BadRow
from stages.store.records import Message

PREFERRED = ("chosen", "rejected")


def preference(row: Any) -> tuple[list[Message], str, str]:
    """Prompt, chosen and rejected: TRL's columns (prompt explicit or shared by both), ShareGPT's, or Alpaca's.

    Raises:
        BadRow: where a column is missing, or chosen and rejected do not answer the same prompt, or are the same.
        ChangesMeaning: for a row with a column that nothing can use yet.
    """
    if not isinstance(row, dict):
        raise BadRow("", f"a row must be an object, this is a {type(row).__name__}")
    for field in PREFERRED:
        if field not in row:
            raise BadRow(field, f"the column is missing; there are {', '.join(map(str, row))}")
    unused_beside(row)
    asked = prompt_of(row)
    if {"messages", "conversations", "instruction", "prompt"} & set(asked):
        prompt, answer = conversation(asked)
        if answer is not None:
            raise BadRow("", "the prompt ends with an assistant turn")
        chosen, rejected = (completion(row[field], field, prompt) for field in PREFERRED)
    else:
        prompt, chosen = whole(row["chosen"], "chosen")
        other, rejected = whole(row["rejected"], "rejected")
        if prompt != other:
            raise BadRow("rejected", "answers another prompt than chosen")
    if chosen == rejected:
        raise BadRow("rejected", "is the same as chosen")
    return prompt, chosen, rejected


def prompt_of(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a row that say what was asked."""
    answers = ("chosen", "rejected", "output", "completion", *(["messages"] if "prompt" in row else []))
    asked = {k: v for k, v in row.items() if k not in answers}
    if isinstance(row.get("prompt"), str) and all(isinstance(row.get(f), list) and row[f][1:] for f in answers[:2]):
        del asked["prompt"]  # whole conversations stand beside it: it repeats one of their turns
    return asked


def unused_beside(row: Any) -> list[str]:
    """What `columns.unused` tells of a row, where chosen and rejected are read too."""
    if not isinstance(row, dict):
        return []
    asked = prompt_of(row)
    both = {field: row[field] for field in PREFERRED if field in row}
    return unused(asked | both, *PREFERRED) + sorted(map(str, {*row} - {*asked, *both}))


def completion(value: Any, field: str, prompt: list[Message]) -> str:
    """The answer in a string, a message, or a list of messages that may repeat the prompt."""
    if isinstance(value, str):
        return text(value, field)
    turns = [message(turn, field) for turn in (value if isinstance(value, list) else [value])]
    if turns[:-1] not in ([], prompt) or turns[-1]["role"] != "assistant":
        raise BadRow(field, "must be one assistant turn, alone or after the prompt")
    return turns[-1]["content"]


def whole(value: Any, field: str) -> tuple[list[Message], str]:
    """A whole conversation: its prompt and the assistant's last turn."""
    prompt, answer = conversation({"messages": value})
    if answer is None:
        raise BadRow(field, "does not end with an assistant turn")
    return prompt, answer
