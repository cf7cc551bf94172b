"""The split that a prompt falls into, by its id alone: no other row has a part in it, and everything that is made of a
prompt is on the same side."""

from collections.abc import Mapping

from stages.store.records import Message, content_id, prompt_id

NEED_AN_ANSWER = ("sft", "validation")


def prompt_of(messages: list[Message], answer: str | None) -> str:
    """The id of a row's prompt; of plain text, which has no prompt, the id of the text."""
    return prompt_id(messages or [{"role": "assistant", "content": answer or ""}])


def draw_split(prompt: str, shares: Mapping[str, float]) -> str | None:
    """The split that a prompt's id falls into by the shares of its source, or None where they leave it out: rows that
    come or go move none."""
    place = int(prompt[:8], 16) / 2**32
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return None


def draw_side(prompt_id: str, fraction: float, trained: str = "train") -> str:
    """`validation` for this fraction of all prompts, else what training is called."""
    drawn = int(content_id("held out", prompt_id)[:8], 16) / 2**32
    return "validation" if drawn < fraction else trained
