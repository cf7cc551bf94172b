"""Which prompts are held out of training: by a hash, so that all that is made of a prompt is on the same side."""

from stages.store.records import content_id


def side(prompt_id: str, fraction: float, trained: str = "train") -> str:
    """`validation` for this fraction of all prompts, else what training is called."""
    drawn = int(content_id("held out", prompt_id)[:8], 16) / 2**32
    return "validation" if drawn < fraction else trained
