"""The thoughts that a model writes before its answer, in the marks of all families that have any.

What is judged of an answer, by a check, a judge, people or a reward model, is what stands behind the thought."""

import re
from typing import NamedTuple

# The marks that begin and end a thought: of Qwen, DeepSeek and many others, Mistral, Kimi, Seed, Gemma 4, OpenThoughts.
MARKS = {
    **{f"<{name}>": f"</{name}>" for name in ("think", "thinking", "thought", "reasoning")},
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<seed:think>": "</seed:think>",
    "<|channel>thought\n": "<channel|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
}
EMPTY = re.compile(
    "|".join(rf"{re.escape(begin)}\s*{re.escape(end)}" for begin, end in MARKS.items())
)
# gpt-oss writes thought and answer as messages, each behind its channel; OpenThoughts marks the answer too.
CHANNELS, MESSAGE, FINAL = "<|channel|>", "<|message|>", "<|channel|>final"
MESSAGES = re.compile(r"<\|message\|>(.*?)(?:<\|end\|>|$)", re.DOTALL)
SOLUTION = re.compile(r"<\|begin_of_solution\|>(.*?)(<\|end_of_solution\|>|$)", re.DOTALL)


class Thinking(NamedTuple):
    """A text that begins with a thought: the thought, the answer after it, and the text behind the opening mark."""

    thought: str
    answer: str
    behind_mark: str


def split_thought(text: str) -> Thinking | None:
    """Return the parts of a text that begins with a thought; None if it begins with none. The opening mark may be
    missing, as it is where the prompt has written it."""
    text = text.lstrip()
    for begin, end in MARKS.items():
        before, closed, answer = text.partition(end)
        if closed and (before.startswith(begin) or begin not in before):
            behind = text.removeprefix(begin).lstrip()
            return Thinking(before.removeprefix(begin).strip(), answer.strip(), behind)
    return None


def answer_behind(text: str) -> str:
    """Return an answer without the thought before it, as it is if it has none; '' if the thought never ends."""
    if never_ends(text):
        return ""
    if text.lstrip().startswith(CHANNELS):
        return text.rpartition(MESSAGE)[2].strip()
    if thinking := split_thought(text):
        solution = SOLUTION.match(thinking.answer)
        return solution[1].strip() if solution else thinking.answer
    return text


def thought_before(text: str) -> str:
    """Return the thought that a text begins with, without its marks; '' if it has none."""
    begun = text.strip()
    if begun.startswith(CHANNELS):
        return "\n".join(MESSAGES.findall(begun.partition(FINAL)[0])).strip()
    if thinking := split_thought(text):
        return thinking.thought
    return next((begun.removeprefix(mark).strip() for mark in MARKS if begun.startswith(mark)), "")


def never_ends(text: str, open_end: str | None = None) -> bool:
    """Return whether a text begins with a thought and never ends it. `open_end`: the mark that ends the thought which
    its prompt has begun."""
    if open_end and open_end not in text:
        return True
    begun = text.lstrip()
    if begun.startswith(CHANNELS):
        return FINAL not in text
    return begun.startswith(tuple(MARKS)) and split_thought(text) is None


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
        return (
            "the template's prompt begins a thought, and this answer has none. Give answers with thoughts, or name "
            "another template"
        )
    if (
        not end
        and (thinking := split_thought(content))
        and thinking.behind_mark == content.lstrip()
    ):
        return (
            "this answer ends a thought that neither it nor the prompt begins. Type data.file.reasoning=strip "
            "('data.sources[0].reasoning=strip' of a list, label.reasoning=strip of preferences) to leave it out, or take "
            "a template whose prompt begins it"
        )
    closed_at_once = end and answer.lstrip().startswith(end)
    if (EMPTY.search(answer) or closed_at_once) and not EMPTY.search(content):
        return "the template writes an empty thought before this answer"
    return ""
