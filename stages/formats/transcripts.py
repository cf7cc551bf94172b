"""Conversations written into one string, with a mark before every turn: Anthropic's HH, OpenAssistant's Guanaco,
ChatML."""

import re

from stages.formats.turns import ROLES
from stages.store.records import Message

# A mark with the speaker's name in it, and what ends a turn.
MARKS = {
    re.compile(r"(?:\A\s*|\n\n)(Human|Assistant|System): ?"): "",
    re.compile(r"(?:\A\s*|\s*)### (Human|Assistant|System): ?"): "",
    re.compile(r"(?:\A\s*|\s*)<\|im_start\|>(user|assistant|system)\n"): "<|im_end|>",
}
SPOKEN = re.compile("|".join(mark.pattern for mark in MARKS))
# What text that was rendered for some model holds: to read it as running text would train its marks as words.
RENDERED = re.compile(
    r"<\|im_(start|end)\|>|\[/?INST\]|<\|(user|assistant|system|start_header_id)\|>|<start_of_turn>|"
    r"^### (Instruction|Response|Human|Assistant):|\A\s*Human: .*\n\nAssistant:",
    re.MULTILINE,
)


def transcript(value: object) -> list[Message] | None:
    """The turns in a string; None where it is no transcript. The content of a turn may be empty."""
    if not isinstance(value, str) or not SPOKEN.match(value):
        return None
    for mark, end in MARKS.items():
        if mark.match(value):
            pieces = mark.split(value)[1:]
            return [
                {"role": ROLES[who.lower()], "content": content.strip().removesuffix(end).rstrip()}
                for who, content in zip(pieces[::2], pieces[1::2], strict=True)
            ]
    return None


def open_transcript(value: object) -> list[Message] | None:
    """The turns in a string that ends where the assistant is to speak, with or without its mark."""
    turns = transcript(value)
    if turns and turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    return turns
