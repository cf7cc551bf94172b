"""Turns of a conversation: who speaks when, and what is said. Tools, their calls and reasoning become text, in the
form that Hermes and Qwen models were trained on: https://github.com/NousResearch/Hermes-Function-Calling."""

import ast
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from stages.formats.content_parts import divided, is_parts, kind_of
from stages.formats.readers.row import BadRow
from stages.store.records import Message

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "chatbot": "assistant", "ai": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool", "ipython": "tool",
    "tool_response": "tool",
}  # fmt: skip
WHO = ("role", "from", "author", "speaker", "sender")
WHAT = ("content", "value", "parts", "text", "message", "utterance")
CALLING = ("function_call", "tool_call")  # who speaks where a turn is a call and nothing else
REASONING = ("reasoning", "reasoning_content", "thinking")
PAIR = ("input", "human", "user", "question", "prompt", "output", "assistant", "gpt", "answer", "response")
CALLS = ("tool_calls", "function_call")
# Who may speak after whom; a conversation begins with the user, after a system message if there is one.
AFTER = {None: {"user"}, "user": {"assistant"}, "assistant": {"user", "tool"}, "tool": {"tool", "assistant"}}
NOTHING = ("", "[]", "{}")  # in JSON; no set, for which a text would be hashed
THOUGHT = re.compile(
    r"\s*(<(think|thinking|thought|reasoning)>.*?</\2>|<\|begin_of_thought\|>.*?<\|end_of_thought\|>)\s*", re.DOTALL
)
SOLUTION = re.compile(r"<\|begin_of_solution\|>(.*)<\|end_of_solution\|>\s*", re.DOTALL)  # what follows it then
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
    if is_parts(value):
        parts = divided(value, field)
        texts = parts["text"]
        value = "".join(texts) if len(texts) == len(value) and all(isinstance(each, str) for each in texts) else None
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
    """A list with something in it, also as JSON in a string, or as Python shows it: a cell of a table holds no
    other."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = written(value, field)
    if not isinstance(value, list) or not value:
        raise BadRow(field, f"must be a list with something in it, is {type(value).__name__}")
    return value


def written(value: str, field: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise BadRow(field, "must be a list, and is no JSON")


def said(turn: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The first of these keys of a turn that says something."""
    return next((turn[name] for name in names if not empty(turn.get(name))), None)


def bare(turn: dict[str, Any]) -> str | None:
    """What a turn says where that is `{}` or `[]`: of a tool's result, or of an answer in JSON, it is the content."""
    return next((value for name in WHAT if isinstance(value := turn.get(name), str) and value.strip()), None)


def message(turn: Any, field: str, strip: bool = False) -> Message:
    """A turn as OpenAI, ShareGPT or LLaMA-Factory writes it. `strip` leaves the reasoning of an answer out."""
    if not isinstance(turn, dict):
        raise BadRow(field, "a turn must be an object with role and content")
    who = said(turn, WHO)
    if not isinstance(who, str) or who.lower() not in ROLES:
        keys = "" if who is not None else f" among the keys {', '.join(turn)}"
        raise BadRow(field, f"unknown role {who!r}{keys}; known: {', '.join(ROLES)}")
    who = who.lower()
    if ROLES[who] != "assistant":
        return {"role": ROLES[who], "content": text(said(turn, WHAT) or bare(turn), field)}
    thought, content, calls = said(turn, REASONING), said(turn, WHAT), said(turn, CALLS)
    if thought is None and calls is None:
        content = content or bare(turn)
    calls = calls if isinstance(calls, list) else [calls] if calls is not None else []
    if who in CALLING:
        content, calls = None, parsed_calls(content, field)
    elif isinstance(content, list):
        parts = divided(content, field)
        if parts["result"]:
            raise BadRow(field, "a tool's result in an answer")
        thought = thought or "\n".join(text(each, field) for each in parts["thought"]) or None
        calls += [call for each in parts["call"] for call in parsed_calls(each, field)]
        content = "".join(text(each, field) for each in parts["text"]) or None
    spoken = [call_text(call, field) for call in calls]
    if content is not None or not spoken:
        spoken.insert(0, text(content, field))
    return {"role": "assistant", "content": reasoned("\n".join(spoken), thought, field, strip)}


def spoken_turns(given: list[Any]) -> list[Any]:
    """Turns as objects with a role: of texts, which take turns, of objects with a request and its answer each, and of
    the user's with results of tools in their content."""
    if all(isinstance(turn, str) for turn in given):
        return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(given)]
    found: list[Any] = []
    for turn in given:
        pair = [turn[key] for key in PAIR if key in turn] if isinstance(turn, dict) and len(turn) == 2 else []
        if len(pair) == 2 and all(isinstance(each, str) for each in pair):
            found += spoken_turns(pair)
        elif not (isinstance(turn, dict) and said(turn, WHO) == "system" and said(turn, WHAT) is None):
            found += with_results(turn)
    return found


def with_results(turn: Any) -> list[Any]:
    """A turn of the user's in which results of tools stand, as Anthropic and Gemini have them: turns of the tool's."""
    content = said(turn, WHAT) if isinstance(turn, dict) else None
    results = [part for part in content or () if kind_of(part) == "result"] if is_parts(content) else []
    if not results or ROLES.get(str(said(turn, WHO)).lower()) != "user":
        return [turn]
    rest = [part for part in content or () if part not in results]
    told = [{"role": "tool", "content": each} for each in divided(results, "content")["result"]]
    return told + ([{"role": "user", "content": rest}] if rest else [])


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
        after = answer[found.end() :] if (found := THOUGHT.match(answer)) else answer
        return text(SOLUTION.sub(lambda solution: solution[1].strip(), after), field)
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
    system = [{"role": "system", "content": told_to(row["system"])}] if "system" in row else []
    if "history" not in row:
        return system
    history = listed(row["history"], "history")
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRow("history", "must be a list of pairs: a request and its answer")
    spoken = [text(turn, "history") for pair in history for turn in pair]
    return system + [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(spoken)]


def told_to(value: Any) -> str:
    """A system message, which may be marked as one, or be a turn."""
    if isinstance(value, dict):
        value = said(value, WHAT)
    return text(text(value, "system").removeprefix("SYSTEM: "), "system")


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
