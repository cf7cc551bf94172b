"""Constraints on the format of the whole answer: JSON, a table, labelled lines, tags or a fence."""

import json
import re
from typing import Any

from stages.store.text_units import lines
from stages.tasks.constraint import Side, constraint, count_of, worded

LABELS = "topic title summary reason example detail question tip".split()  # labels that fit any request


@constraint(Side.train, "whole", lambda rng, request: {"keys": rng.sample(LABELS, rng.choice([2, 3]))})
@worded("""
    Answer with a single JSON object that has exactly the keys {keys}. Every value is a string, and none is empty.
    Your whole answer must be one JSON object. Its keys are {keys}, no others, and each has some text as its value.
    Write nothing but a JSON object with the keys {keys} and a string that is not empty for each.
    Give it as JSON: one object whose only keys are {keys}, each with a string of text. Add nothing around it.
    I will read your answer by machine, so send only a JSON object. It has the keys {keys}, all with text as values.
    Fill in a JSON object with the keys {keys}, each holding a string of text, and leave out anything else.
""")
def json_object(answer: str, keys: list[str]) -> bool:
    value = _parsed(answer)
    return isinstance(value, dict) and value.keys() == set(keys) and all(map(_is_text, value.values()))


@constraint(
    Side.train,
    "whole",
    lambda rng, request: {"labels": [label.capitalize() for label in rng.sample(LABELS, rng.choice([2, 3]))]},
)
@worded("""
    Answer only in lines that begin with the labels {labels}, in this order, each with a colon and some text after it.
    Your answer is one line for each of {labels}, in this order: the label, a colon, the text. Nothing else.
    Fill in this form, a line for each label and no other lines, in the order given: {labels}. Put a colon and your \
text after each label.
    Give one line per label, with a colon between label and text. The labels are {labels}; keep their order and add \
no further lines.
    I want a card with just these lines in this order, each a label with a colon and what belongs to it: {labels}.
""")
def key_value_lines(answer: str, labels: list[str]) -> bool:
    answer_lines = [line.replace("*", "") for line in lines(answer)]
    return len(answer_lines) == len(labels) and all(
        re.match(rf"{re.escape(label)}\s*:.*[^\W_]", line, re.IGNORECASE)
        for label, line in zip(labels, answer_lines, strict=True)
    )


@constraint(Side.validation, "whole", count_of(2, 3, 4))
@worded("""
    Answer with a JSON array of exactly {count} strings, none of them empty, and nothing else.
    Your whole answer must be one JSON list that holds {count} strings of text.
    Write nothing but a JSON array. It contains {count} strings, each with some text in it.
    Give it as JSON: a single list with {count} texts in double quotes. Add nothing around it.
    I will read your answer by machine, so send only a JSON array whose {count} elements are all strings of text.
""")
def json_list(answer: str, count: int) -> bool:
    value = _parsed(answer)
    return isinstance(value, list) and len(value) == count and all(map(_is_text, value))


@constraint(Side.test, "whole", count_of(2, 3, 4))
@worded("""
    Give your answer as a Markdown table with exactly {count} columns: a header, a separator row and at least one more.
    Use a Markdown table of {count} columns that has a header row, the row of dashes under it and one or more rows.
    Put it in a table written in Markdown: {count} columns, a header, the line of dashes below, and at least one row.
    I want a Markdown table. It needs {count} columns, a row of headers, a separator row and some content below.
    Arrange it as a table in Markdown: headers for {count} columns, dashes under them, then one row or several.
""")
def markdown_table(answer: str, count: int) -> bool:
    rows = [_cells(line) for line in answer.splitlines()]
    return any(
        len(header) == len(rule) == len(row) == count
        and all(re.fullmatch(r":?-+:?", cell) for cell in rule)
        and re.search(r"[^\W_]", "".join(header))
        and re.search(r"[^\W_]", "".join(row))
        for header, rule, row in zip(rows, rows[1:], rows[2:], strict=False)
    )


@constraint(
    Side.aside,
    "start end",
    lambda rng, request: {"tag": rng.choice(["answer", "reply", "response", "text", "result"])},
)
@worded("""
    Put your whole answer between one <{tag}> and one </{tag}>, with nothing before or after them.
    Begin with the tag <{tag}> and end with </{tag}>; use each only once.
    Wrap everything that you write in a single pair of tags, <{tag}> at the start and </{tag}> at the end.
    The very first thing in your answer is <{tag}>, the very last is </{tag}>, and neither comes up in between.
    Enclose all of your text in <{tag}>...</{tag}>, once, and leave nothing outside.
""")
def answer_tags(answer: str, tag: str) -> bool:
    opened, closed, lowered = f"<{tag}>", f"</{tag}>", answer.lower()
    inside = lowered.removeprefix(opened).removesuffix(closed)
    return (
        lowered == opened + inside + closed
        and opened not in inside
        and closed not in inside
        and re.search(r"[^\W_]", inside) is not None
    )


@constraint(Side.aside, "start end layout")
@worded("""
    Put the whole answer in a fenced block: a line with ``` before it and a line with ``` after it.
    Your answer starts with a line of three backticks and ends with another, and all of the text is between the two.
    Write everything inside one Markdown code fence, with the opening ``` and the closing ``` on lines of their own.
    Place a single ``` fence around all of your text, each end of it on its own line, and leave nothing outside.
    Begin with ``` on the first line, close with ``` on the last, and write your text on the lines in between.
""")
def fenced_block(answer: str) -> bool:
    block = re.fullmatch(r"```[\w+-]*[ \t]*\n(.*)\n[ \t]*```", answer, re.DOTALL)
    return block is not None and "```" not in block[1] and re.search(r"[^\W_]", block[1]) is not None


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
    row = line.strip().removeprefix("|")
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.removesuffix("|"))]
