"""Read the rows of a JSON array: the file's text is in memory, and one row at a time."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stages.config.errors import UserError
from stages.formats.readers.json_lines import (
    DECODER,
    BoundedLines,
    decode_text,
    json_message,
    parse_value,
)
from stages.formats.readers.row import BadRow, Row

SPACE = re.compile(r"[ \t\r\n]*")
PART = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{\]}]')  # a string, or a bracket
LENIENT = json.JSONDecoder(parse_int=str)  # accepts a key twice, NaN, and any number of digits


def array_rows(file: Path, stream: BoundedLines) -> Iterator[Row]:
    """Yield the rows of a JSON array. Raise UserError at the first syntax error: no row can be found after it."""
    text, number = decode_text(file, stream.read()), 0
    try:
        mark, position = read_mark(text, 0, "[")
        if text.startswith("]", start_of_next(text, position)):
            mark, position = read_mark(text, position, "]")
        while mark != "]":
            number += 1
            start = start_of_next(text, position)
            row, position = read_row(file, text, start, number)
            stream.refuse_longer(position - start)
            yield row
            mark, position = read_mark(text, position, ",]")
        if (rest := start_of_next(text, position)) < len(text):
            raise json.JSONDecodeError("Extra data", text, rest)
    except json.JSONDecodeError as error:
        way_out = "Mend the array, or write one JSON object a line."
        raise UserError(f"{file}: line {error.lineno}: {json_message(error)}. {way_out}") from error


def start_of_next(text: str, position: int) -> int:
    """Return the position after white space."""
    match = SPACE.match(text, position)
    return match.end() if match else position


def read_mark(text: str, position: int, marks: str) -> tuple[str, int]:
    """Return the next character after white space, which must be one of `marks`, and the position after it."""
    position = start_of_next(text, position)
    if position == len(text) or text[position] not in marks:
        raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
    return text[position], position + 1


def read_row(file: Path, text: str, position: int, number: int) -> tuple[Row, int]:
    """Return the row at a position, and the position after it."""
    try:
        value, end = parse_value(text, partial(DECODER.raw_decode, idx=position))
        return Row(str(file), number, value), end
    except BadRow as reason:
        try:
            _, end = parse_value(text, partial(LENIENT.raw_decode, idx=position))
        except BadRow:
            end = end_of_nested(text, position)
        return Row(str(file), number, text[position:end], reason), end


def end_of_nested(text: str, position: int) -> int:
    """Return the position after a value that is nested too deeply to be parsed: after its last bracket."""
    depth = 0
    for part in PART.finditer(text, position):
        depth += (part[0] in "[{") - (part[0] in "]}")
        if depth == 0:
            return part.end()
    raise json.JSONDecodeError("Expecting ',' delimiter", text, len(text))
