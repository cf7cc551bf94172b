"""Conversations written into one string, with a mark before every turn: as chat templates render them, as Anthropic's
HH and OpenAssistant's Guanaco write them, and in plain words (User: …, Assistant: …)."""

import json
import re
from collections.abc import Mapping

from stages.formats.readers.row import BadRow
from stages.formats.turns import ROLES, call_text
from stages.store.records import Message

ADDITION = "more"  # of the request before it, as Alpaca's input
SPEAKERS = ROLES | {
    "[inst]": "user", "[/inst]": "assistant", "question": "user", "answer": "assistant",
    "instruction": "user", "input": ADDITION, "context": ADDITION, "response": "assistant", "output": "assistant",
    "function response": "tool",
}  # fmt: skip
# A mark with the speaker's name in it, and what ends a turn. These are no words that a text holds by chance.
MARKS = {
    re.compile(r"(?:\A\s*|\n\n)(Human|Assistant|System): ?"): "",
    re.compile(r"(?:\A\s*|\s*)### (Human|Assistant|System): ?"): "",
    re.compile(r"(?:\A\s*|\s*)<\|im_start\|>(user|assistant|system|tool)\n"): "<|im_end|>",
    re.compile(r"\s*(?:<\|begin_of_text\|>)?<\|start_header_id\|>(system|user|assistant|ipython|tool)<\|end_header_id\|>\s*"):
        "<|eot_id|>",
    re.compile(r"\s*(?:<bos>)?<start_of_turn>(user|model)\n"): "<end_of_turn>",
    re.compile(r"\s*<\|(system|user|assistant)\|>\n?"): "<|end|>",
    re.compile(r"\s*(?:<s>)?\s*(\[/?INST\])[ \n]?"): "</s>",
}  # fmt: skip
# These are, so they count only where a whole text, or a column of conversations, is made of them.
PLAIN_MARKS = {
    re.compile(r"\s*### (Human|Assistant|System|User|Question|Answer|Instruction|Input|Context|Response|Output):"): "",
    re.compile(r"(?:\A\s*|\n\s*)(User|Human|Assistant|AI|Bot|System): ?"): "",
    re.compile(r"(?:\A\s*|\s+)(USER|ASSISTANT|SYSTEM|FUNCTION RESPONSE): ?"): "",
    re.compile(r"(?:\A\s*|\n\s*)<(human|bot|user|assistant)>: ?"): "",
}  # fmt: skip
END_MARKS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")  # of any model's text
# What stands before the first mark, and is then the system message.
PREAMBLE = re.compile(r"\s*((?:Below is an instruction|A chat between|You are )[^\n]*?)(?=\s*(?:### |USER:|User:))")
SYSTEM = re.compile(r"\A<<SYS>>\s*(.*?)\s*<</SYS>>\s*", re.DOTALL)  # Llama 2 has it in the first request
CALL = re.compile(r"<functioncall>\s*(\{.*\})", re.DOTALL)  # Glaive's, with its arguments in single quotes
QUOTED = re.compile(r"(\"arguments\":\s*)'(.*)'(\s*\}\s*)\Z", re.DOTALL)
OPEN = re.compile(
    r"(###\s*(Response|Assistant|Answer|Output)|^(Assistant|ASSISTANT|AI|Bot|<bot>)|\sASSISTANT):\s*\Z", re.M
)
SPOKEN = re.compile("|".join(mark.pattern for mark in MARKS))
# What text that was rendered for some model holds: to read it as running text would train its marks as words.
RENDERED = re.compile(
    r"<\|im_(start|end)\|>|\[/?INST\]|<\|(user|assistant|system|start_header_id)\|>|<start_of_turn>|"
    r"^### (Instruction|Response|Human|Assistant):|\A\s*Human: .*\n\nAssistant:",
    re.MULTILINE,
)


def parse_transcript(value: object, plain: bool = False) -> list[Message] | None:
    """The turns in a string; None where it is no transcript. The content of a turn may be empty. `plain`: words before
    turns may be marks."""
    if not isinstance(value, str):
        return None
    if not plain:
        return best_split(value, MARKS) if SPOKEN.match(value) else None
    preamble = PREAMBLE.match(value)
    turns = best_split(value[preamble.end() :] if preamble else value, MARKS | PLAIN_MARKS)
    return [{"role": "system", "content": preamble[1]}, *turns] if turns and preamble else turns


def best_split(value: str, marks: Mapping[re.Pattern[str], str]) -> list[Message] | None:
    """The turns by the first of these marks that divides a text among two who speak, or else among fewer."""
    candidates: list[list[Message]] = []
    for mark, end in marks.items():
        if mark.match(value):
            pieces = mark.split(value)[1:]
            turns = [as_turn(who, content, end) for who, content in zip(pieces[::2], pieces[1::2], strict=True)]
            candidates.append(merge_turns(turns))
    return max(candidates, key=lambda turns: len({turn["role"] for turn in turns} - {"system"}), default=None)


def as_turn(who: str, content: str, end: str) -> Message:
    content = content.strip()
    for mark in (end, *END_MARKS):
        content = content.removesuffix(mark).rstrip()
    return {"role": SPEAKERS[who.lower()], "content": content}


def merge_turns(turns: list[Message]) -> list[Message]:
    """The turns, with what belongs to a request in it, and what Llama 2 has there of the system before it; calls in
    the form that all calls have."""
    merged: list[Message] = []
    for turn in turns:
        role, content = turn["role"], turn["content"]
        if role == "user" and not merged and (system := SYSTEM.match(content)):
            merged.append({"role": "system", "content": system[1]})
            content = content[system.end() :]
        if role == ADDITION and merged and merged[-1]["role"] == "user":
            merged[-1]["content"] = "\n\n".join(filter(None, (merged[-1]["content"], content)))
            continue
        if role == "assistant" and (call := CALL.search(content)):
            content = content[: call.start()] + glaive_call(call[1])
        merged.append({"role": "user" if role == ADDITION else role, "content": content})
    return merged


def glaive_call(source: str) -> str:
    """Glaive's call as any other: its arguments are JSON in single quotes, which are no JSON."""
    outer = QUOTED.sub(lambda quoted: quoted[1] + json.dumps(quoted[2]) + quoted[3], source)
    try:
        return call_text(json.loads(outer), "chat")
    except ValueError:
        raise BadRow("messages", "a <functioncall> that is no JSON") from None


def parse_open_transcript(value: object) -> list[Message] | None:
    """The turns in a string that ends where the assistant is to speak, with or without its mark; a mark in plain words
    has to be there."""
    turns = parse_transcript(value)
    if turns is None and isinstance(value, str) and OPEN.search(value):
        turns = parse_transcript(value, plain=True)
    if turns and turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    return turns
