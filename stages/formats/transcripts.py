"""Parse conversations in one string with a mark before each turn: as chat templates, Anthropic's HH and Guanaco write
them, and with plain words as marks (User: …, Assistant: …)."""

import json
import re
from collections.abc import Mapping
from typing import Any

from stages.config.installation import read_beside
from stages.formats.readers.row import BadRow

ADDITION = "more"  # a piece that is appended to the request before it, as Alpaca's input
MARKED = read_beside(__file__)
ROLES = {name: role for role, names in MARKED["roles"].items() for name in names.split()}
SPEAKERS = ROLES | {name: role for role, names in MARKED["speakers"].items() for name in names}
MARKS = {re.compile(mark): end for mark, end in MARKED["marks"].items()}
PLAIN_MARKS = {re.compile(mark): "" for mark in MARKED["plain_marks"]}
END_MARKS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")  # of any model's text
ENDS = (*filter(None, MARKS.values()), *END_MARKS)
# A sentence before the first mark is the system message.
PREAMBLE = re.compile(
    r"\s*((?:Below is an instruction|A chat between|You are )[^\n]*?)(?=\s*(?:### |USER:|User:))"
)
SYSTEM = re.compile(r"\A<<SYS>>\s*(.*?)\s*<</SYS>>\s*", re.DOTALL)  # in Llama 2's first request
# Glaive's calls, with arguments in single quotes
CALL = re.compile(r"<functioncall>\s*(\{.*\})", re.DOTALL)
QUOTED = re.compile(r"(\"arguments\":\s*)'(.*)'(\s*\}\s*)\Z", re.DOTALL)
SPOKEN = re.compile("|".join(mark.pattern for mark in MARKS))
OPEN, RENDERED = (re.compile("|".join(MARKED[name]), re.MULTILINE) for name in ("open", "rendered"))

# A mark of no words before the name of a speaker; tags of HTML are none
BORDER = re.compile(
    r"((?!</?[a-z0-9]+>)[<\[\]{}|~#@!:｜][\w<>\[\]{}|~#@!:｜▁-]{1,18}[<>\[\]{}|~#@!:｜])"
    r"(user|human|assistant|ai|bot)\b",
    re.IGNORECASE,
)


def find_mark(text: str) -> str | None:
    """Return a mark of a chat template in running text: a known one, or any that begins the turns of both speakers."""
    if known := RENDERED.search(text):
        return known[0]
    found = BORDER.findall(text)
    by_user, by_assistant = (
        {mark for mark, name in found if SPEAKERS[name.lower()] == role}
        for role in ("user", "assistant")
    )
    return next(iter(sorted(by_user & by_assistant)), None)


def parse_transcript(value: object, plain: bool = False) -> list[dict[str, Any]] | None:
    """Return the turns of a transcript, or None for other values. `plain`: words such as `User:` are marks, too."""
    if not isinstance(value, str):
        return None
    if not plain:
        return best_split(value, MARKS) if SPOKEN.match(value) else None
    preamble = PREAMBLE.match(value)
    turns = best_split(value[preamble.end() :] if preamble else value, MARKS | PLAIN_MARKS)
    return [{"role": "system", "content": preamble[1]}, *turns] if turns and preamble else turns


def best_split(value: str, marks: Mapping[re.Pattern[str], str]) -> list[dict[str, Any]] | None:
    """Split a text at the marks that give the most different speakers, the first such marks in a tie."""
    candidates: list[list[dict[str, Any]]] = []
    for mark, end in marks.items():
        if mark.match(value):
            pieces = mark.split(value)[1:]
            turns = [
                as_turn(who, content, end)
                for who, content in zip(pieces[::2], pieces[1::2], strict=True)
            ]
            candidates.append(merge_turns(turns))
    return max(
        candidates,
        key=lambda turns: len({turn["role"] for turn in turns} - {"system"}),
        default=None,
    )


def as_turn(speaker: str, content: str, end: str) -> dict[str, Any]:
    content = content.strip()
    for mark in (end, *END_MARKS):
        content = content.removesuffix(mark).rstrip()
    return {"role": SPEAKERS[speaker.lower()], "content": content}


def without_end(answer: str) -> str:
    """Return an answer without marks of a chat template at its end, unless it is nothing else."""
    text = answer.rstrip()
    if not text.endswith(ENDS):
        return answer
    while text.endswith(ENDS):
        text = text.removesuffix(next(filter(text.endswith, ENDS))).rstrip()
    return text or answer


def merge_turns(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns with inputs joined to their requests, Llama 2's system message as a turn, and calls as text."""
    merged: list[dict[str, Any]] = []
    for turn in turns:
        role, content = turn["role"], turn["content"]
        if role == "user" and not merged and (system := SYSTEM.match(content)):
            merged.append({"role": "system", "content": system[1]})
            content = content[system.end() :]
        if role == ADDITION and merged and merged[-1]["role"] == "user":
            merged[-1]["content"] = "\n\n".join(filter(None, (merged[-1]["content"], content)))
            continue
        turn = {"role": "user" if role == ADDITION else role, "content": content}
        if role == "assistant" and (call := CALL.search(content)):
            turn |= {"content": content[: call.start()], "tool_calls": [glaive_call(call[1])]}
        merged.append(turn)
    return merged


def glaive_call(source: str) -> Any:
    """Return a call in Glaive's notation, which is JSON except for single quotes around the arguments."""
    outer = QUOTED.sub(lambda quoted: quoted[1] + json.dumps(quoted[2]) + quoted[3], source)
    try:
        return json.loads(outer)
    except ValueError:
        raise BadRow("messages", "a <functioncall> is not JSON") from None


def parse_open_transcript(value: object) -> list[dict[str, Any]] | None:
    """Return the turns of a transcript with a request that ends where the assistant's answer begins; None if the value
    is not one. Plain words count as marks only if the last of them, such as `Assistant:`, ends the string."""
    turns = parse_transcript(value)
    text = value.rstrip() if isinstance(value, str) else ""
    if turns is None and text.endswith(":") and OPEN.search(text):
        turns = parse_transcript(value, plain=True)
    if turns and turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    return turns if turns and any(turn["role"] == "user" for turn in turns) else None
