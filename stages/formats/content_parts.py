"""Typed parts of a turn's content, as OpenAI, Anthropic, Gemini and Bedrock write them, in one form."""

import json
from collections.abc import Mapping
from typing import Any

from stages.formats.readers.row import BadRow

# What a part is, by its `type`, or where it has none by the key that it stands under.
KINDS = {
    "text": "text", "input_text": "text", "output_text": "text",
    "reasoning": "thought", "thinking": "thought",
    "tool_call": "call", "tool_use": "call", "toolUse": "call", "functionCall": "call",
    "tool_result": "result", "toolResult": "result", "functionResponse": "result",
}  # fmt: skip
VALUE_KEYS = ("text", "value", "thinking", "reasoning")
ARGUMENT_KEYS = ("arguments", "input", "args")


def is_parts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) and kind_of(part) for part in value)


def kind_of(part: Mapping[str, Any]) -> str | None:
    """text, thought, call or result; of another part its type, and None of what is no part."""
    if "type" in part:
        return KINDS.get(str(part["type"]), str(part["type"]))
    if {"role", "from", "author", "speaker", "sender"} & part.keys():
        return None
    return "thought" if part.get("thought") is True else next((KINDS[key] for key in part if key in KINDS), None)


def split_parts(content: list[Any], field: str) -> dict[str, list[Any]]:
    """What parts say, by their kind.

    Raises:
        BadRow: for a part that is no text and cannot be written as one.
    """
    values_by_kind: dict[str, list[Any]] = {"text": [], "thought": [], "call": [], "result": []}
    for part in content:
        kind = kind_of(part) if isinstance(part, dict) else None
        if kind not in values_by_kind:
            raise BadRow(field, f"a part of type {kind!r}; known: {', '.join(KINDS)}")
        nested = (value for key, value in part.items() if key in KINDS and isinstance(value, dict))
        values_by_kind[kind].append(READERS[kind](part if "type" in part else next(nested, part)))
    return values_by_kind


def part_value(part: Mapping[str, Any]) -> Any:
    return next((part[key] for key in VALUE_KEYS if key in part), None)


def parse_call(part: Mapping[str, Any]) -> Any:
    """A call with its name and arguments, or the JSON of one."""
    arguments: Any = next((part[key] for key in ARGUMENT_KEYS if key in part), {})
    return {"name": part["name"], "arguments": arguments} if "name" in part else part_value(part)


def result_text(part: Mapping[str, Any]) -> str:
    """What a tool gave back, as text."""
    content = part.get("content", part.get("response", ""))
    if isinstance(content, list) and all(
        isinstance(item, dict) and isinstance(item.get("text"), str) for item in content
    ):
        return "\n".join(item["text"] for item in content)
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


READERS = {"text": part_value, "thought": part_value, "call": parse_call, "result": result_text}
