"""The split of a row. It depends only on the first turn of the user, so that other rows have no influence on it.

All rows, candidates and pairs of one prompt are in the same split, and so are all that continue one conversation, or
that state the same group."""

from collections.abc import Mapping, Sequence

from stages.store.records import Example, Message, content_id, prompt_id

NEED_AN_ANSWER = ("sft", "validation")


def prompt_of(messages: list[Message], answer: str | None) -> str:
    """Return the id of a row's prompt. For plain text, which has no prompt, return the id of the text."""
    return prompt_id(messages or [{"role": "assistant", "content": answer or ""}])


def conversation_of(prompt: str, messages: list[Message], group: str | None) -> str:
    """Return the id of a row's group, if it states one. Else return the id of the first turn of the user, or the prompt's
    if there is none. A system message decides nothing, as it may hold the time of day."""
    if group:
        return content_id("group", group)
    if len(messages) == 1:  # the prompt's id is that of this turn
        return prompt
    for message in messages:
        if message["role"] == "user":
            return prompt_id([message])
    return prompt


def split_of(
    messages: list[Message], answers: Sequence[str], group: str | None, shares: Mapping[str, float]
) -> str | None:
    """Return the split of a row that is read from a file, as `draw_split`."""
    answer = answers[0] if len(answers) == 1 else None
    return draw_split(conversation_of(prompt_of(messages, answer), messages, group), shares)


def draw_split(conversation: str, shares: Mapping[str, float]) -> str | None:
    """Return the split that a conversation falls into by the shares of its source, or None if no share covers it. Rows
    that are added to the source or removed from it do not change the splits of other rows."""
    place = int(conversation[:8], 16) / 2**32
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return None


def draw_order(prompt: str) -> str:
    """Return a sort key that puts the prompts of a split in a random order. Their ids are none: a split is an interval
    of ids, so those of one source may all be lower than those of another."""
    return content_id("drawn", prompt)


def draw_side(prompt: Example, fraction: float, trained: str = "train") -> str:
    """Return `validation` for this fraction of all conversations, and `trained` for the others."""
    conversation = conversation_of(prompt.id, prompt.messages, prompt.together)
    return "validation" if held_out_place(conversation) < fraction else trained


def held_out_place(conversation: str) -> float:
    """Return a random number from 0 to 1. The conversation is held out by every fraction above this number."""
    return int(content_id("held out", conversation)[:8], 16) / 2**32
