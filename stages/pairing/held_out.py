"""Which prompts are held out of training: by a hash, so that all that is made of a prompt is on the same side."""

from stages.store.records import content_id


def held_out(prompt_id: str, fraction: float) -> bool:
    return int(content_id("held out", prompt_id)[:8], 16) / 2**32 < fraction
