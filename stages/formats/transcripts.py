"""Parse conversations in one string with a mark before each turn: tags, as chat templates write them, or words, as in
Anthropic's HH, Guanaco's and Vicuna's sets (User: …, Assistant: …)."""

import json
import re
from collections.abc import Iterable
from typing import Any

from stages.config.installation import read_beside
from stages.formats.readers.row import BadRow
from stages.formats.turn_tags import (
    ends_answer,
    first_turn_tag,
    last_tag,
    strip_borders,
    strip_shared,
    tagged_turns,
)

ADDITION = "more"  # a piece that is appended to the request before it, as Alpaca's input
MARKED = read_beside(__file__)
ROLES = {name: role for role, names in MARKED["roles"].items() for name in names.split()}
SPEAKERS = ROLES | {name: role for role, names in MARKED["speakers"].items() for name in names}
MARKS = [re.compile(mark) for mark in MARKED["marks"]]
PLAIN_MARKS = [re.compile(mark) for mark in MARKED["plain_marks"]]
# A sentence before the first mark is the system message.
PREAMBLE = re.compile(
    r"\s*((?:Below is an instruction|A chat between|You are )[^\n]*?(?=\s*(?:### |USER:|User:))"
    r"|[A-Z][^\n]{0,300}?(?=\s(?:USER|HUMAN): ))"
)
SYSTEM = re.compile(r"\A<<SYS>>\s*(.*?)\s*<</SYS>>\s*", re.DOTALL)  # in Llama 2's first request
# Glaive's calls, with arguments in single quotes
CALL = re.compile(r"<functioncall>\s*(\{.*\})", re.DOTALL)
QUOTED = re.compile(r"(\"arguments\":\s*)'(.*)'(\s*\}\s*)\Z", re.DOTALL)
# What frames turns, as ChatGLM's [Round 1] and Dolly's ### End
FRAME = re.compile(r"\A\[\w+ \d+\]\s*|(?:\[\w+ \d+\]|### ?End)\Z")
OPEN = re.compile("|".join(MARKED["open"]), re.MULTILINE)
HEADINGS = [re.compile(heading, re.MULTILINE) for heading in MARKED["headings"]]


def find_mark(text: str) -> str | None:
    """Return a mark of turns in running text that no other text has by chance: a tag, words before the turns of both
    speakers, or headings of a request and then of its answer."""
    tag = first_turn_tag(text)
    if tag:
        return tag
    turns = split_at_words(strip_borders(text), MARKS) or []
    if {"user", "assistant"} <= {turn["role"] for turn in turns}:
        return text.split(":")[0].strip() + ":"
    request = HEADINGS[0].search(text)
    if request and HEADINGS[1].search(text, request.end()):
        return request[0]
    return None


def parse_transcript(value: object, plain: bool = False) -> list[dict[str, Any]] | None:
    """Return the turns of a transcript, or None for other values. `plain`: words such as `User:` are marks, too."""
    if not isinstance(value, str):
        return None
    tagged = tagged_turns(value)
    if tagged:
        return merge_turns(tagged)
    if not plain:
        return split_at_words(value, MARKS)
    value = FRAME.sub("", strip_borders(value)).rstrip()
    preamble = PREAMBLE.match(value)
    turns = split_at_words(value[preamble.end() :] if preamble else value, [*MARKS, *PLAIN_MARKS])
    return [{"role": "system", "content": preamble[1]}, *turns] if turns and preamble else turns


def is_transcript(text: str) -> bool:
    """Return whether a text begins with a mark of turns that no other text has by chance."""
    return any(mark.match(text) for mark in MARKS) or tagged_turns(text) is not None


def split_at_words(value: str, marks: Iterable[re.Pattern[str]]) -> list[dict[str, Any]] | None:
    """Split a text at the marks that give the most different speakers, the first such marks in a tie."""
    candidates: list[list[dict[str, Any]]] = []
    for mark in marks:
        if mark.match(value):
            pieces = mark.split(value)[1:]
            turns = [
                as_turn(who, content)
                for who, content in zip(pieces[::2], pieces[1::2], strict=True)
            ]
            strip_shared(turns)
            candidates.append(merge_turns(turns))
    return max(
        candidates,
        key=lambda turns: len({turn["role"] for turn in turns} - {"system"}),
        default=None,
    )


def as_turn(speaker: str, content: str) -> dict[str, Any]:
    content = FRAME.sub("", strip_borders(content.strip(" ▁"))).rstrip()
    return {"role": SPEAKERS[speaker.lower()], "content": content}


def without_end(answer: str) -> str:
    """Return an answer without marks of a chat template at its end, unless it is nothing else."""
    text = answer
    while ends_answer(last_tag(text)):
        text = text.rstrip().removesuffix(last_tag(text)).rstrip()
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
        turn = {**turn, "role": "user" if role == ADDITION else role, "content": content}
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
