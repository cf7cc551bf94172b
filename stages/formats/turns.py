"""Parse the turns of a conversation and their typed parts. Tools, their calls and reasoning become text, in the form
that Hermes and Qwen models were trained on: https://github.com/NousResearch/Hermes-Function-Calling."""

import ast
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from stages.config.installation import read_beside
from stages.formats.readers.row import BadRow
from stages.store.records import Message
from stages.store.thoughts import MARKS, answer_behind
from stages.store.tool_calls import BEGIN, END, TOOLS

TEXTS = read_beside(__file__)
ROLES = {name: role for role, names in TEXTS["roles"].items() for name in names.split()}
ROLE_KEYS = ("role", "from", "author", "speaker", "sender")
CONTENT_KEYS = ("content", "value", "parts", "text", "message", "utterance")
CALL_ROLES = ("function_call", "tool_call")  # roles of turns that are a tool call and nothing else
REASONING_KEYS = ("reasoning", "reasoning_content", "thinking")
PAIR_KEYS = (
    "input",
    "human",
    "user",
    "question",
    "prompt",
    "output",
    "assistant",
    "gpt",
    "answer",
    "response",
)
CALL_KEYS = ("tool_calls", "function_call")
# The roles that may follow each role; None is the beginning, after a system message if there is one.
NEXT_ROLES = {
    None: {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant"},
}
EMPTY_JSON = ("", "[]", "{}")  # a tuple, since a set would hash the whole text
# The kind of a part, by its `type`, or by its key if it has no type.
KINDS = {name: kind for kind, names in TEXTS["parts"].items() for name in names.split()}
VALUE_KEYS = ("text", "value", "thinking", "reasoning")
ARGUMENT_KEYS = ("arguments", "input", "args")


def is_empty(value: Any) -> bool:
    """Return True for null, white space, and an empty list or object, also as JSON. Zero and false are not empty."""
    return (
        value.strip() in EMPTY_JSON
        if isinstance(value, str)
        else value is None or value == [] or value == {}
    )


def require_text(value: Any, field: str) -> str:
    """Return a string that is not blank, or the joined texts of typed parts; raise BadRow for any other value."""
    if is_parts(value):
        parts = split_parts(value, field)
        texts = parts["text"]
        value = (
            "".join(texts)
            if len(texts) == len(value) and all(isinstance(item, str) for item in texts)
            else None
        )
    if not isinstance(value, str):
        raise BadRow(field, f"must be text, is {type(value).__name__}")
    if not value.strip():
        raise BadRow(field, "is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(field, "holds half a surrogate pair, which is not a character") from None
    return value


def require_list(value: Any, field: str) -> list[Any]:
    """Return a list that is not empty, also from a string in JSON or in Python's notation, as in a CSV cell."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_list(value, field)
    if not isinstance(value, list) or not value:
        raise BadRow(field, f"must be a list that is not empty, is {type(value).__name__}")
    return value


def parse_list(value: str, field: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    raise BadRow(field, "must be a list, but is not JSON")


def first_value(turn: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the first value of a turn under these keys that is not empty; None if all are."""
    return next((turn[name] for name in keys if not is_empty(turn.get(name))), None)


def is_written_list(text: str) -> bool:
    """Return True for a text that is a list of objects, unless it is valid and no object has a key of a turn."""
    if not text.lstrip().startswith("[{"):
        return False
    try:
        objects = parse_list(text, "")
    except BadRow:
        return True
    return any(
        key in turn
        for turn in objects
        if isinstance(turn, dict)
        for key in (*ROLE_KEYS, *PAIR_KEYS)
    )


def role_of(turn: Any) -> str | None:
    """Return the role of a turn: system, user, assistant or tool; None if it is not one of these."""
    return ROLES.get(str(first_value(turn, ROLE_KEYS)).lower()) if isinstance(turn, dict) else None


def bare_content(turn: dict[str, Any]) -> str | None:
    """Return the content of a turn that is the string `{}` or `[]`: a tool's result or an answer may be empty JSON."""
    return next(
        (
            value
            for key in CONTENT_KEYS
            if isinstance(value := turn.get(key), str) and value.strip()
        ),
        None,
    )


def parse_turn(turn: Any, field: str, strip: bool = False) -> Message:
    """Parse a turn as OpenAI, ShareGPT or LLaMA-Factory writes it. `strip` removes the reasoning of an answer."""
    if not isinstance(turn, dict):
        raise BadRow(field, "a turn must be an object with role and content")
    role = first_value(turn, ROLE_KEYS)
    if not isinstance(role, str) or role.lower() not in ROLES:
        keys = "" if role is not None else f" among the keys {', '.join(turn)}"
        raise BadRow(field, f"unknown role {role!r}{keys}; known: {', '.join(ROLES)}")
    role = role.lower()
    if ROLES[role] != "assistant":
        content = first_value(turn, CONTENT_KEYS) or bare_content(turn)
        return {"role": ROLES[role], "content": require_text(content, field)}
    reasoning, content, calls = (
        first_value(turn, keys) for keys in (REASONING_KEYS, CONTENT_KEYS, CALL_KEYS)
    )
    if reasoning is None and calls is None:
        content = content or bare_content(turn)
    calls = calls if isinstance(calls, list) else [calls] if calls is not None else []
    if role in CALL_ROLES:
        content, calls = None, parse_calls(content, field)
    elif isinstance(content, list):
        parts = split_parts(content, field)
        if parts["result"]:
            raise BadRow(field, "an assistant turn contains a tool's result")
        reasoning = (
            reasoning or "\n".join(require_text(part, field) for part in parts["thought"]) or None
        )
        calls += [call for part in parts["call"] for call in parse_calls(part, field)]
        content = "".join(require_text(part, field) for part in parts["text"]) or None
    spoken = [call_text(call, field) for call in calls]
    if content is not None or not spoken:
        spoken.insert(0, require_text(content, field))
    return {
        "role": "assistant",
        "content": with_reasoning("\n".join(spoken), reasoning, field, strip),
    }


def turn_objects(turns: list[Any]) -> list[Any]:
    """Return turns as objects with a role. Texts alternate between user and assistant, objects with a request and its
    answer give two turns, and tool results inside a user's turn give turns of the tool."""
    if all(isinstance(turn, str) for turn in turns):
        return [
            {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)
        ]
    objects: list[Any] = []
    for turn in turns:
        pair = (
            [turn[key] for key in PAIR_KEYS if key in turn]
            if isinstance(turn, dict) and len(turn) == 2
            else []
        )
        if len(pair) == 2 and all(isinstance(side, str) for side in pair):
            objects += turn_objects(pair)
            continue
        keys = (ROLE_KEYS, CONTENT_KEYS)
        if not isinstance(turn, dict) or [first_value(turn, names) for names in keys] != [
            "system",
            None,
        ]:
            objects += split_tool_results(turn)
    return objects


def split_tool_results(turn: Any) -> list[Any]:
    """Return a turn as a list. Tool results inside a user's turn (Anthropic, Gemini) become turns of the tool."""
    content = first_value(turn, CONTENT_KEYS) if isinstance(turn, dict) else None
    results = (
        [part for part in content or () if kind_of(part) == "result"] if is_parts(content) else []
    )
    if not results or role_of(turn) != "user":
        return [turn]
    other_parts = [part for part in content or () if part not in results]
    tool_turns = [
        {"role": "tool", "content": result} for result in split_parts(results, "content")["result"]
    ]
    return tool_turns + ([{"role": "user", "content": other_parts}] if other_parts else [])


def parse_calls(value: Any, field: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow(field, "a tool call is not JSON") from None
    return value if isinstance(value, list) else [value]


def call_text(call: Any, field: str) -> str:
    """Return a tool call as text; its arguments may be an object, or JSON in a string as OpenAI writes them."""
    call = call.get("function", call) if isinstance(call, dict) else None
    if (
        not isinstance(call, dict)
        or not isinstance(call.get("name"), str)
        or "arguments" not in call
    ):
        raise BadRow(field, "a tool call must have a name and arguments")
    arguments = call["arguments"]
    if isinstance(arguments, str):
        if len(values := list(parse_calls(f"[{arguments.strip() or '{}'}]", field))) != 1:
            raise BadRow(field, "the arguments of a tool call must be one JSON value")
        arguments = values[0]
    call_json = json_text({"name": call["name"], "arguments": arguments}, field)
    return f"{BEGIN}\n{require_text(call_json, field)}\n{END}"


def json_text(value: Any, field: str) -> str:
    """Return a value as JSON. Raise BadRow for a date, or another value of a table that JSON does not have."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadRow(field, f"{error}. Write it as text") from None


def with_reasoning(answer: str, reasoning: Any, field: str, strip: bool) -> str:
    """Return an answer with its reasoning before it; with `strip`, without any reasoning."""
    if strip:
        return require_text(answer_behind(answer), field)
    if reasoning is None or answer.lstrip().startswith(tuple(MARKS)):
        return answer
    return f"<think>\n{require_text(reasoning, field).strip()}\n</think>\n\n{answer}"


def with_tools(turns: list[Message], tools: Any) -> list[Message]:
    """Return the conversation with its tools in the system message, unless the system message has tools already."""
    tool_objects = parse_calls(tools, "tools")
    if not all(isinstance(tool, dict) for tool in tool_objects):
        raise BadRow("tools", "must be a list of objects")
    if turns and turns[0]["role"] == "system" and "<tools>" in turns[0]["content"]:
        return turns
    lines = (json_text(tool, "tools") for tool in tool_objects)
    instructions = require_text(TOOLS.format("\n".join(lines)), "tools")
    if turns and turns[0]["role"] == "system":
        return [
            {"role": "system", "content": f"{turns[0]['content']}\n\n{instructions}"},
            *turns[1:],
        ]
    return [{"role": "system", "content": instructions}, *turns]


def context_turns(row: Mapping[str, Any]) -> list[Message]:
    """Return the turns before the request: the system message, and Alpaca's `history` of requests and answers."""
    system = [{"role": "system", "content": system_text(row["system"])}] if "system" in row else []
    if "history" not in row:
        return system
    history = require_list(row["history"], "history")
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRow("history", "must be a list of pairs: a request and its answer")
    spoken = [require_text(turn, "history") for pair in history for turn in pair]
    return system + [
        {"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(spoken)
    ]


def system_text(value: Any) -> str:
    """Return the text of a system message, which may be an object, or begin with `SYSTEM: `."""
    if isinstance(value, dict):
        value = first_value(value, CONTENT_KEYS)
    return require_text(require_text(value, "system").removeprefix("SYSTEM: "), "system")


def split_off_answer(turns: list[Message]) -> tuple[list[Message], str | None]:
    """Split off the last assistant turn's text, None if the user is last; raise BadRow for a bad order of roles."""
    if reason := turn_order_error(tuple([turn["role"] for turn in turns])):
        raise BadRow("", reason)
    if turns[-1]["role"] == "assistant":
        return turns[:-1], turns[-1]["content"]
    return turns, None


@lru_cache(maxsize=1000)
def turn_order_error(roles: tuple[str, ...]) -> str:
    """Return the error in an order of roles; empty if there is none."""
    if "system" in roles[1:]:
        return "a system message is not the first message"
    spoken = roles[1:] if roles[:1] == ("system",) else roles
    if "user" not in spoken:
        return "no user turn"
    if any(
        role not in NEXT_ROLES[before]
        for before, role in zip((None, *spoken), spoken, strict=False)
    ):
        return f"user and assistant do not alternate: {', '.join(spoken)}"
    return ""


def is_parts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and kind_of(part) for part in value)
    )


def kind_of(part: Mapping[str, Any]) -> str | None:
    """Return text, thought, call or result; for any other part its type; None if the object is not a part."""
    if "type" in part:
        return KINDS.get(str(part["type"]), str(part["type"]))
    if {"role", "from", "author", "speaker", "sender"} & part.keys():
        return None
    return (
        "thought"
        if part.get("thought") is True
        else next((KINDS[key] for key in part if key in KINDS), None)
    )


def split_parts(content: list[Any], field: str) -> dict[str, list[Any]]:
    """Return the values of parts by kind; raise BadRow for a part of a kind that cannot become text."""
    values_by_kind: dict[str, list[Any]] = {"text": [], "thought": [], "call": [], "result": []}
    for part in content:
        kind = kind_of(part) if isinstance(part, dict) else None
        if kind not in values_by_kind:
            raise BadRow(
                field,
                f"a part of type {kind!r} cannot be read; the known types are {', '.join(KINDS)}",
            )
        nested = (value for key, value in part.items() if key in KINDS and isinstance(value, dict))
        values_by_kind[kind].append(READERS[kind](part if "type" in part else next(nested, part)))
    return values_by_kind


def part_value(part: Mapping[str, Any]) -> Any:
    return next((part[key] for key in VALUE_KEYS if key in part), None)


def parse_call(part: Mapping[str, Any]) -> Any:
    """Return a tool call as an object with name and arguments, or its JSON."""
    arguments: Any = next((part[key] for key in ARGUMENT_KEYS if key in part), {})
    return {"name": part["name"], "arguments": arguments} if "name" in part else part_value(part)


def result_text(part: Mapping[str, Any]) -> str:
    """Return the result of a tool as text."""
    content = part.get("content", part.get("response", ""))
    if isinstance(content, list):
        texts: list[Any] = [
            item.get("text") if isinstance(item, dict) else None for item in content
        ]
        if all(isinstance(text, str) for text in texts):
            return "\n".join(texts)
    return content if isinstance(content, str) else json_text(content, "content")


READERS = {"text": part_value, "thought": part_value, "call": parse_call, "result": result_text}
