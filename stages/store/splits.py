"""The split of a prompt. It depends only on the prompt's id, so that other rows have no influence on it.

All rows, candidates and pairs of one prompt are in the same split."""

from collections.abc import Mapping

from stages.store.records import Message, content_id, prompt_id

NEED_AN_ANSWER = ("sft", "validation")


def prompt_of(messages: list[Message], answer: str | None) -> str:
    """Return the id of a row's prompt. For plain text, which has no prompt, return the id of the text."""
    return prompt_id(messages or [{"role": "assistant", "content": answer or ""}])


def draw_split(prompt: str, shares: Mapping[str, float]) -> str | None:
    """Return the split that a prompt's id falls into by the shares of its source, or None if no share covers it. Rows
    that are added to the source or removed from it do not change the splits of other rows."""
    place = int(prompt[:8], 16) / 2**32
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return None


def draw_order(prompt: str) -> str:
    """Return a sort key that puts the prompts of a split in a random order. Their ids are none: a split is an interval
    of ids, so those of one source may all be lower than those of another."""
    return content_id("drawn", prompt)


def draw_side(prompt_id: str, fraction: float, trained: str = "train") -> str:
    """Return `validation` for this fraction of all prompts, and `trained` for the others."""
    drawn = int(content_id("held out", prompt_id)[:8], 16) / 2**32
    return "validation" if drawn < fraction else trained
