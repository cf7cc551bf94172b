"""Which split a row of a source falls into, by the content of its prompt, and what the source is then read for."""

from collections.abc import Mapping

from stages.config.blocks.data import Source
from stages.formats.column_mapping import Wanted
from stages.store.records import Message, prompt_id

NEED_AN_ANSWER = ("sft", "validation")


def wanted(source: Source) -> Wanted:
    """Answers where a split that rows fall into learns from them, or a check compares with them; else prompts."""
    answered = source.check or any(source.shares.get(split) for split in NEED_AN_ANSWER)
    return Wanted.answers if answered else Wanted.prompts


def prompt_of(messages: list[Message], answer: str | None) -> str:
    """The id of a row's prompt; of plain text, which has no prompt, the id of the text."""
    return prompt_id(messages or [{"role": "assistant", "content": answer or ""}])


def split_of(prompt: str, shares: Mapping[str, float]) -> str | None:
    """The split that a prompt's id falls into by the shares of its source, or None where they leave it out. No other
    row has a part in it: rows that come or go move none."""
    place = int(prompt[:8], 16) / 2**32
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return None
