"""Tools, their calls and results: as text, in which rows hold them (the form that Hermes and Qwen models were trained
on: https://github.com/NousResearch/Hermes-Function-Calling), and as fields of their own, which chat templates take."""

import json
import re
from collections.abc import Sequence
from typing import Any

from stages.store.records import Message

BEGIN, END = "<tool_call>", "</tool_call>"
# The system message that describes the tools of a conversation.
TOOLS = f"""You can call these tools. A call is a line of JSON with name and arguments between {BEGIN} and {END}.

<tools>
{{}}
</tools>"""
DESCRIBED = re.compile(re.escape(TOOLS).replace(r"\{\}", "(.*)"), re.DOTALL)
Turn = dict[str, Any]


def as_fields(messages: Sequence[Message]) -> tuple[list[Turn], list[Turn] | None]:
    """Return the turns of a conversation with calls and results as fields, and its tools; None if it has none. Where a
    message of its own says how calls are written, they stay as text."""
    turns, tools = tools_apart(messages)
    if any(BEGIN in turn["content"] for turn in turns if turn["role"] in ("system", "user")):
        return [{**message} for message in messages], None
    waiting, number = list[Turn](), 0
    for turn in turns:
        if turn["role"] == "assistant":
            turn["content"], calls = split_calls(turn["content"])
            waiting = [
                {"id": f"call{i:05}", "type": "function", "function": call}
                for i, call in enumerate(calls, number)
            ]
            number += len(calls)
            if waiting:
                turn["tool_calls"] = waiting
        elif turn["role"] == "tool" and waiting:
            call, *waiting = waiting
            turn |= {"tool_call_id": call["id"], "name": call["function"]["name"]}
    return turns, tools


def without_tools(text: str) -> str:
    """Return a system message without the description of tools."""
    return DESCRIBED.sub("", text)


def quoted(text: str) -> str:
    """Return a text as it stands in JSON, in which many templates write the results of tools."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def tools_apart(messages: Sequence[Message]) -> tuple[list[Turn], list[Turn] | None]:
    """Return a conversation without the description of its tools in the system turn, and these tools."""
    turns: list[Turn] = [{**message} for message in messages]
    described = DESCRIBED.search(turns[0]["content"]) if turns[0]["role"] == "system" else None
    if described is None:
        return turns, None
    try:
        tools = [json.loads(line) for line in described[1].splitlines()]
    except ValueError:  # somebody has changed the description, which stays text
        return turns, None
    rest = without_tools(turns[0]["content"]).strip()
    system = [{"role": "system", "content": rest}] if rest else []
    return system + turns[1:], [*map(in_function, tools)]


def in_function(tool: Turn) -> Turn:
    """Return a tool in the form of OpenAI's API, which also has tools that are no functions."""
    return tool if "function" in tool else {"type": "function", "function": tool}


def split_calls(text: str) -> tuple[str, list[Turn]]:
    """Return what an answer says before its calls, and the calls; the whole text, if it does not end with calls."""
    spoken, *blocks = text.split(BEGIN)
    calls = [read_call(block) for block in blocks]
    read = [call for call in calls if call is not None]
    return (text, []) if len(read) < len(calls) or not read else (spoken.strip(), read)


def read_call(block: str) -> Turn | None:
    """Return the name and the arguments of a call behind its opening mark; None if it is no such object."""
    written = block.strip()
    try:
        call = json.loads(written.removesuffix(END))
    except (ValueError, RecursionError):
        return None
    is_call = isinstance(call, dict) and isinstance(call.get("arguments"), dict)
    if not is_call or not written.endswith(END) or not isinstance(call.get("name"), str):
        return None
    return {"name": call["name"], "arguments": call["arguments"]}
