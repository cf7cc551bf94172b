"""Turns of a conversation: who speaks when, and what is said. Tools, their calls and reasoning become text, in the
form that Hermes and Qwen models were trained on: https://github.com/NousResearch/Hermes-Function-Calling."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from stages.formats.row import BadRow
from stages.store.records import Message

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "function_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip
WHO, WHAT = ("role", "from"), ("content", "value")
REASONING = ("reasoning", "reasoning_content", "thinking")
PAIR = ("input", "human", "user", "question", "prompt", "output", "assistant", "gpt", "answer", "response")
CALLS = ("tool_calls", "function_call")
# Who may speak after whom; a conversation begins with the user, after a system message if there is one.
AFTER = {None: {"user"}, "user": {"assistant"}, "assistant": {"user", "tool"}, "tool": {"tool", "assistant"}}
NOTHING = ("", "[]", "{}")  # in JSON; no set, for which a text would be hashed
THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
TOOLS = (
    "You can call these tools. A call is a line of JSON with name and arguments between <tool_call> and </tool_call>."
    "\n\n<tools>\n{}\n</tools>"
)


def empty(value: Any) -> bool:
    """Whether a column says nothing in this row: null, white space, an empty list or object, these as JSON too. Zero
    and false are values."""
    return value.strip() in NOTHING if isinstance(value, str) else value is None or value == [] or value == {}


def text(value: Any, field: str) -> str:
    """A string with something in it; typed parts are joined where all are text."""
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        parts = [part.get("text", part.get("value")) for part in value]
        value = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(value, str):
        raise BadRow(field, f"must be text, is {type(value).__name__}")
    if not value.strip():
        raise BadRow(field, "is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(field, "holds half a surrogate pair, which no encoding can store") from None
    return value


def listed(value: Any, field: str) -> list[Any]:
    """A list with something in it, also as JSON in a string: a cell of a table holds no other."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow(field, "must be a list, and is no JSON") from None
    if not isinstance(value, list) or not value:
        raise BadRow(field, f"must be a list with something in it, is {type(value).__name__}")
    return value


def said(turn: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The first of these keys of a turn that says something."""
    return next((turn[name] for name in names if not empty(turn.get(name))), None)


def message(turn: Any, field: str, strip: bool = False) -> Message:
    """A turn as OpenAI, ShareGPT or LLaMA-Factory writes it. `strip` leaves the reasoning of an answer out."""
    if not isinstance(turn, dict):
        raise BadRow(field, "a turn must be an object with role and content")
    who = said(turn, WHO)
    if not isinstance(who, str) or who.lower() not in ROLES:
        raise BadRow(field, f"unknown role {who!r}; known: {', '.join(ROLES)}")
    who = who.lower()
    if ROLES[who] != "assistant":
        return {"role": ROLES[who], "content": text(said(turn, WHAT), field)}
    thought, content, calls = said(turn, REASONING), said(turn, WHAT), said(turn, CALLS)
    calls = calls if isinstance(calls, list) else [calls] if calls is not None else []
    if who == "function_call":
        content, calls = None, parsed_calls(content, field)
    elif isinstance(content, list):
        thought, content, calls = parts(content, field)
    spoken = [call_text(call, field) for call in calls]
    if content is not None or not spoken:
        spoken.insert(0, text(content, field))
    return {"role": "assistant", "content": reasoned("\n".join(spoken), thought, field, strip)}


def spoken_turns(given: list[Any]) -> list[Any]:
    """Turns as objects with a role: of texts, which take turns, and of objects with a request and its answer each."""
    if all(isinstance(turn, str) for turn in given):
        return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(given)]
    found: list[Any] = []
    for turn in given:
        pair = [turn[key] for key in PAIR if key in turn] if isinstance(turn, dict) and len(turn) == 2 else []
        found += spoken_turns(pair) if len(pair) == 2 and all(isinstance(each, str) for each in pair) else [turn]
    return found


def parts(content: list[Any], field: str) -> tuple[Any, Any, list[Any]]:
    """Reasoning, text and calls of an answer in typed parts."""
    kinds: dict[str, list[Any]] = {"reasoning": [], "text": [], "tool_call": []}
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in kinds:
            raise BadRow(field, f"a part of type {kind!r}; known: {', '.join(kinds)}")
        kinds[kind].append(part.get("text", part.get("value")))
    thought = "\n".join(text(each, field) for each in kinds["reasoning"])
    calls = [call for each in kinds["tool_call"] for call in parsed_calls(each, field)]
    return thought or None, "".join(text(each, field) for each in kinds["text"]) or None, calls


def parsed_calls(value: Any, field: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow(field, "a tool call is no JSON") from None
    return value if isinstance(value, list) else [value]


def call_text(call: Any, field: str) -> str:
    """A call with its name and arguments, which OpenAI holds as JSON in a string."""
    call = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or "arguments" not in call:
        raise BadRow(field, "a tool call has a name and arguments")
    arguments = call["arguments"]
    if isinstance(arguments, str):
        [arguments] = list(parsed_calls(f"[{arguments or '{}'}]", field))
    written = json.dumps({"name": call["name"], "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{text(written, field)}\n</tool_call>"


def reasoned(answer: str, thought: Any, field: str, strip: bool) -> str:
    """An answer after its reasoning, or without any."""
    if strip:
        return text(THOUGHT.sub("", answer, count=1) if THOUGHT.match(answer) else answer, field)
    return f"<think>\n{text(thought, field).strip()}\n</think>\n\n{answer}" if thought is not None else answer


def with_tools(turns: list[Message], tools: Any) -> list[Message]:
    """The conversation with its tools in the system message."""
    found = parsed_calls(tools, "tools")
    if not all(isinstance(tool, dict) for tool in found):
        raise BadRow("tools", "must be a list of objects")
    if turns and turns[0]["role"] == "system" and "<tools>" in turns[0]["content"]:
        return turns  # which has them already
    told = TOOLS.format("\n".join(json.dumps(tool, ensure_ascii=False) for tool in found))
    if turns and turns[0]["role"] == "system":
        return [{"role": "system", "content": f"{turns[0]['content']}\n\n{told}"}, *turns[1:]]
    return [{"role": "system", "content": told}, *turns]


def earlier(row: Mapping[str, Any]) -> list[Message]:
    """What came before the request: a system message, and Alpaca's `history` of requests with their answers."""
    system = [{"role": "system", "content": text(row["system"], "system")}] if "system" in row else []
    if "history" not in row:
        return system
    history = listed(row["history"], "history")
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRow("history", "must be a list of pairs: a request and its answer")
    spoken = [text(turn, "history") for pair in history for turn in pair]
    return system + [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(spoken)]


def split_off_answer(turns: list[Message]) -> tuple[list[Message], str | None]:
    """Check who speaks when, and take the last assistant turn off."""
    if reason := disorder(tuple([turn["role"] for turn in turns])):
        raise BadRow("", reason)
    if turns[-1]["role"] == "assistant":
        return turns[:-1], turns[-1]["content"]
    return turns, None


@lru_cache(maxsize=1000)
def disorder(roles: tuple[str, ...]) -> str:
    """What is wrong with the order in which these speak; empty where nothing is."""
    if "system" in roles[1:]:
        return "a system message that is not the first"
    spoken = roles[1:] if roles[:1] == ("system",) else roles
    if "user" not in spoken:
        return "no user turn"
    if any(role not in AFTER[before] for before, role in zip((None, *spoken), spoken, strict=False)):
        return f"user and assistant do not take turns: {', '.join(spoken)}"
    return ""
