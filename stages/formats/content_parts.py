"""Parse the typed parts of a turn's content, as OpenAI, Anthropic, Gemini and Bedrock write them."""

import json
from collections.abc import Mapping
from typing import Any

from stages.config.installation import read_beside
from stages.formats.readers.row import BadRow

# The kind of a part, by its `type`, or by its key if it has no type.
KINDS = {name: kind for kind, names in read_beside(__file__).items() for name in names.split()}
VALUE_KEYS = ("text", "value", "thinking", "reasoning")
ARGUMENT_KEYS = ("arguments", "input", "args")


def is_parts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) and kind_of(part) for part in value)


def kind_of(part: Mapping[str, Any]) -> str | None:
    """Return text, thought, call or result; for any other part its type; None if the object is not a part."""
    if "type" in part:
        return KINDS.get(str(part["type"]), str(part["type"]))
    if {"role", "from", "author", "speaker", "sender"} & part.keys():
        return None
    return "thought" if part.get("thought") is True else next((KINDS[key] for key in part if key in KINDS), None)


def split_parts(content: list[Any], field: str) -> dict[str, list[Any]]:
    """Return the values of parts by kind; raise BadRow for a part of a kind that cannot become text."""
    values_by_kind: dict[str, list[Any]] = {"text": [], "thought": [], "call": [], "result": []}
    for part in content:
        kind = kind_of(part) if isinstance(part, dict) else None
        if kind not in values_by_kind:
            raise BadRow(field, f"a part of type {kind!r} cannot be read; the known types are {', '.join(KINDS)}")
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
        texts: list[Any] = [item.get("text") if isinstance(item, dict) else None for item in content]
        if all(isinstance(text, str) for text in texts):
            return "\n".join(texts)
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


READERS = {"text": part_value, "thought": part_value, "call": parse_call, "result": result_text}
