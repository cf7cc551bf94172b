"""The marks between which models write their thoughts."""

import re
from typing import NamedTuple

# The marks that begin and end a thought, of Qwen, DeepSeek and others, Mistral, Kimi, Seed, Gemma 4.
MARKS = {
    "<think>": "</think>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<seed:think>": "</seed:think>",
    "<|channel>thought\n": "<channel|>",
}
EMPTY = re.compile(
    "|".join(rf"{re.escape(begin)}\s*{re.escape(end)}" for begin, end in MARKS.items())
)


def open_thought(text: str) -> str | None:
    """Return the mark that ends the thought which a text leaves open; None if it leaves none open."""
    for begin, end in MARKS.items():
        if text.rfind(begin) > text.rfind(end):
            return end
    return None


def thought_fault(prompt: str, answer: str, content: str) -> str:
    """Return what is wrong with the thought of an answer as a template writes it, after its prompt; '' if nothing is.
    `content`: the answer as it was given."""
    end = open_thought(prompt)
    if end and end not in answer:
        return "the template's prompt begins a thought, and this answer has none"
    closed_at_once = end and answer.lstrip().startswith(end)
    if (EMPTY.search(answer) or closed_at_once) and not EMPTY.search(content):
        return "the template writes an empty thought before this answer"
    return ""


class Thinking(NamedTuple):
    """A text that begins with a thought: the thought, the answer after it, and the text behind the opening mark."""

    thought: str
    answer: str
    behind_mark: str


def split_thought(text: str) -> Thinking | None:
    """Return the parts of a text that begins with a thought; None if it begins with none."""
    for begin, end in MARKS.items():
        if text.startswith(begin) and end in text:
            behind = text.removeprefix(begin).lstrip()
            thought, answer = behind.split(end, 1)
            return Thinking(thought.strip(), answer.strip(), behind)
    return None
