"""Constraints on the format of the whole answer: JSON, a table, labelled lines, tags or a fence."""

import json
import re
from typing import Any

from stages.store.text_units import lines
from stages.tasks.constraint import Draw

# labels that fit any request
LABELS = ["topic", "title", "summary", "reason", "example", "detail", "question", "tip"]
DRAWS: dict[str, Draw] = {
    "json_object": lambda rng, request: {"keys": rng.sample(LABELS, rng.choice([2, 3]))},
    "key_value_lines": lambda rng, request: {
        "labels": [label.capitalize() for label in rng.sample(LABELS, rng.choice([2, 3]))]
    },
}


def json_object(answer: str, keys: list[str]) -> bool:
    value = _parsed(answer)
    return (
        isinstance(value, dict) and value.keys() == set(keys) and all(map(_is_text, value.values()))
    )


def key_value_lines(answer: str, labels: list[str]) -> bool:
    answer_lines = [line.replace("*", "") for line in lines(answer)]
    return len(answer_lines) == len(labels) and all(
        re.match(rf"{re.escape(label)}\s*:.*[^\W_]", line, re.IGNORECASE)
        for label, line in zip(labels, answer_lines, strict=True)
    )


def json_list(answer: str, count: int) -> bool:
    value = _parsed(answer)
    return isinstance(value, list) and len(value) == count and all(map(_is_text, value))


def markdown_table(answer: str, count: int) -> bool:
    rows = [_cells(line) for line in answer.splitlines()]
    return any(
        len(header) == len(rule) == len(row) == count
        and all(re.fullmatch(r":?-+:?", cell) for cell in rule)
        and re.search(r"[^\W_]", "".join(header))
        and re.search(r"[^\W_]", "".join(row))
        for header, rule, row in zip(rows, rows[1:], rows[2:], strict=False)
    )


def _parsed(answer: str) -> Any:
    """Return the JSON value of an answer, with or without a fence around it; None for invalid JSON."""
    fenced = re.fullmatch(r"```(?:json)?[ \t]*\n(.*)```", answer, re.DOTALL | re.IGNORECASE)
    try:
        return json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and re.search(r"[^\W_]", value) is not None


def _cells(line: str) -> list[str]:
    """Return the cells of a Markdown table's row, whose outer bars are optional."""
    return [
        cell.strip()
        for cell in re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    ]
