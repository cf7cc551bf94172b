"""Read the rows of JSON: a value a line, values over several lines, an array, or one object that holds a table.

A row is unusable if it has a key twice, NaN, or a number of some thousand digits."""

import io
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.formats.readers.content import BLANK, PEEK_BYTES, Content, is_utf8
from stages.formats.readers.row import BadRow, Row, first_repeated
from stages.formats.turns import ROLE_KEYS

WHITE = " \t\r\n"
BEFORE = f"\ufeff{WHITE}"  # a value: the byte order mark and white space
SPACE = f"[{WHITE}]*+"
# The beginning and the separators of an array, and of values one after another. `end`: no value follows.
ARRAY = (
    re.compile(rf"{SPACE}\[{SPACE}(?:(?P<end>\]{SPACE}\Z)|(?!\]))"),
    re.compile(rf"{SPACE}(?:,{SPACE}|(?P<end>\]{SPACE}\Z))"),
)
SERIES = (
    re.compile(rf"{SPACE}(?P<end>\Z)?"),
    re.compile(rf"{SPACE},?{SPACE}(?P<end>\Z)?"),
)
PART = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{\]}]')  # a string, or a bracket
COMMENT = re.compile(r"\s*(//|/\*|#)")
# Keys under which a single object has its rows, and keys that describe the file as a whole.
ROW_KEYS, METADATA_KEYS = (
    set(read_beside(__file__)[name].split()) for name in ("rows", "metadata")
)
MAX_SHOWN = 9  # keys in an error
FILE = "FILE"  # the place of the file's name in a command


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    items = dict(pairs)
    if len(items) < len(pairs):
        raise BadRow(
            str(first_repeated([key for key, _ in pairs])), "broken JSON: the key occurs twice"
        )
    return items


def refuse_constant(name: str) -> None:
    command = edit_command(rf"s/([:,[] *){name}\b/\1null/g")
    raise BadRow("", f"broken JSON: {name} is not a number. Write null: {command}")


STRICT = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=refuse_constant)
LENIENT = json.JSONDecoder(parse_int=str)  # accepts a key twice, NaN, and any number of digits


def parse_value(text: str, position: int) -> tuple[Any, int, BadRow | None]:
    """Return the JSON value at a position, the position after it, and the reason if it cannot be a row.
    Raise JSONDecodeError if the text is not JSON."""
    try:
        return *STRICT.raw_decode(text, position), None
    except json.JSONDecodeError:
        raise
    except RecursionError:
        end = end_of_nested(text, position)
        return text[position:end], end, BadRow("", "broken JSON: nested too deeply")
    except BadRow as error:
        reason = error
    except ValueError:  # Python refuses integers of more than some thousand digits
        reason = BadRow("", "broken JSON: a number with too many digits")
    _, end = LENIENT.raw_decode(text, position)
    return text[position:end], end, reason


def end_of_nested(text: str, position: int) -> int:
    """Return the position after a value that is nested too deeply to be parsed: after its last bracket."""
    depth = 0
    for part in PART.finditer(text, position):
        depth += (part[0] in "[{") - (part[0] in "]}")
        if depth == 0:
            return part.end()
    raise json.JSONDecodeError("Expecting ',' delimiter", text, len(text))


def syntax_message(error: json.JSONDecodeError) -> str:
    """Return the error of a JSON text; for a comment, also the command that removes it."""
    if not COMMENT.match(error.doc, error.pos):
        return error.msg
    command = edit_command("s,^ *(//|#).*,,")
    return f"a comment, which JSON does not allow. Remove lines with comments: {command}"


def edit_command(program: str) -> str:
    """Return the command that edits the lines of the file, which stands as `FILE` in it."""
    return f"sed -E {shlex.quote(program)} {FILE} > mended.jsonl"


def in_file(error: BadRow | None, name: str) -> BadRow | None:
    """Return the error of a row with the file's name in its command."""
    return error and BadRow(error.field, named(error.reason, name))


def named(message: str, name: str) -> str:
    """Return a message with the file's name in its command."""
    return message.replace(f" {FILE} > ", f" {shlex.quote(name)} > ")


def json_rows(content: Content) -> Iterator[Row]:
    """Yield the rows of a file. It is read line by line if its first line is a value and another line follows."""
    if content.stream.peek(PEEK_BYTES).lstrip(BLANK).startswith(b"["):
        yield from array_rows(content)  # which may be one line, however large the file is
        return
    lines = content.lines(content.stream)
    head = [*through_next(lines)]
    first = b"".join(head).strip(BLANK)
    if first.endswith(b"}") or is_value(first):
        head += through_next(lines)
    is_single = b"".join(head).strip(BLANK) == first
    if is_single and first.startswith(b"{"):
        yield from object_rows(content, b"".join([*head, content.stream.read()]))
    else:
        yield from line_rows(content, chain(head, lines))


def through_next(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield lines up to and with the next that is not blank."""
    for line in lines:
        yield line
        if line.strip(BLANK):
            return


def line_rows(content: Content, lines: Iterable[bytes]) -> Iterator[Row]:
    """Yield the rows of JSON lines. Only \\n ends a line: U+2028 may occur inside a string."""
    name = str(content.file)
    for number, line in enumerate(lines, 1):
        if not line.strip(BLANK):
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError:
            damaged = line.decode(errors="replace").rstrip("\n")
            yield Row(name, number, damaged, content.not_utf8_error(number, line))
            continue
        yield parse_line(name, number, text)


def is_value(line: bytes) -> bool:
    """Return True if a line is a JSON value."""
    return is_utf8(line) and parse_line("", 1, line.decode()).error is None


def parse_line(name: str, number: int, line: str) -> Row:
    """Return the row of a line. A comma may follow it, as in an array without its brackets."""
    text = line.rstrip("\n")
    try:
        value, end, reason = parse_value(text, len(text) - len(text.lstrip(BEFORE)))
        if text[end:].strip(WHITE) not in ("", ","):
            raise json.JSONDecodeError("Extra data", text, end)
        return Row(name, number, value, in_file(reason, name))
    except json.JSONDecodeError as error:
        return Row(
            name, number, text, in_file(BadRow("", f"broken JSON: {syntax_message(error)}"), name)
        )


def value_rows(
    name: str,
    text: str,
    marks: Sequence[re.Pattern[str]],
    check_length: Callable[[int], None] = lambda length: None,
) -> Iterator[Row]:
    """Yield the values of a text between `marks` as rows, one in memory at a time. Raise JSONDecodeError where the
    text is not JSON."""
    start, separator = marks
    match, number = start.match(text), 0
    while match and match["end"] is None:
        number += 1
        value, end, reason = parse_value(text, match.end())
        check_length(end - match.end())
        yield Row(name, number, value, in_file(reason, name), unit="row")
        match = separator.match(text, end)
    if not match:
        with suppress(RecursionError):
            LENIENT.decode(text)  # raises the error of the whole text
        raise json.JSONDecodeError("Expecting ',' delimiter", text, len(text))


def has_lines(raw: bytes) -> bool:
    """Return True if the first line is a value, and another line follows."""
    first, _, others = raw.lstrip(BLANK).partition(b"\n")
    is_last = not others or others.isspace()
    return not is_last and is_value(first)


def array_rows(content: Content) -> Iterator[Row]:
    """Yield the rows of a JSON array, or of lines of which the first is an array.
    Raise UserError at the first syntax error in an array: no row can be found after it."""
    name, raw = str(content.file), content.stream.read()
    if has_lines(raw):
        yield from line_rows(content, io.BytesIO(raw))
        return
    text = content.decode(raw)
    del raw  # the file may be large
    try:
        yield from value_rows(name, text, ARRAY, content.refuse_longer)
    except json.JSONDecodeError as error:
        problem = f"{name}: line {error.lineno}: {named(syntax_message(error), name)}"
        raise UserError(
            f"{problem}. No setting reads it: mend the array, or write one JSON object a line."
        ) from error


def object_rows(content: Content, raw: bytes) -> Iterator[Row]:
    """Yield the rows of a file that is one object, or begins with an object over several lines. If it cannot be read
    as such, its lines are the rows.
    Raise UserError for one object without rows, or if no line can be read either."""
    file, pretty = content.file, b"\n" in raw.strip(BLANK)
    try:
        rows = [*value_rows(str(file), raw.decode("utf-8-sig"), SERIES)]
        problem = str(rows[0].error)
    except UnicodeDecodeError:
        rows, problem = [*line_rows(content, io.BytesIO(raw))], "not UTF-8"
    except json.JSONDecodeError as error:
        rows = [*line_rows(content, io.BytesIO(raw))]
        problem = (
            f"line {error.lineno} column {error.colno}: {named(syntax_message(error), str(file))}"
        )
    if pretty and all(row.error for row in rows):
        content.decode(raw)  # raises the error for other encodings
        raise UserError(f"{file}: {problem}. No setting reads it: correct the object.")
    if len(rows) == 1 and not rows[0].error:
        values = single_object_rows(file, rows[0].value, pretty)
        unit = "row" if len(values) > 1 else "line"
        rows = [Row(str(file), i, value, unit=unit) for i, value in enumerate(values, 1)]
    yield from rows


def single_object_rows(file: Path, value: dict[str, Any], pretty: bool) -> list[dict[str, Any]]:
    """Return the rows of the only object of a file: those of a table in it, or the object itself.
    Raise UserError if it is neither. `pretty`: it is over several lines, so that it need not be a row."""
    # the name promises one row a line
    is_row = {".jsonl", ".ndjson"} & {*file.suffixes} and all(
        isinstance(item, list) for item in value.values()
    )
    rows = None if is_row else rows_in(value)
    if rows is not None:
        return rows
    has_rows = any(is_objects(item) for item in value.values())
    has_text = any(isinstance(item, str) or is_turns(item) for item in value.values())
    if (pretty and (has_rows or not has_text)) or (
        has_rows and ROW_KEYS & {*map(str.lower, value)}
    ):
        raise no_rows_error(file, value)
    return [value]


def rows_in(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the rows in an object, else None: rows under one of `ROW_KEYS`, also as the datasets server wraps them,
    a list for each column, pandas' columns by the number of the row, or rows by their ids."""
    wrapped = [key for key in value if key.lower() in ROW_KEYS and is_objects(value[key])]
    if len(wrapped) == 1 and {*map(str.lower, value)} - METADATA_KEYS == {wrapped[0].lower()}:
        items = value[wrapped[0]]
        return [item["row"] if {"row", "row_idx"} <= item.keys() else item for item in items]
    columns = [*value.values()]
    if len(columns) < 2:
        return None
    if all(is_column(column) and len(column) == len(columns[0]) for column in columns):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if not all(isinstance(column, dict) for column in columns):
        return None
    shared = set(columns[0]).intersection(*columns)
    is_numbered = bool(shared) and all(key.isdecimal() for key in shared)
    if is_numbered and all({*column} == shared for column in columns):
        return [{name: value[name][number] for name in value} for number in columns[0]]
    are_rows = len(shared) > 1 and not shared & {*ROLE_KEYS}
    return [{"id": key, **row} for key, row in value.items()] if are_rows else None


def is_column(value: Any) -> bool:
    """Return True for a list of several values that are not lists or objects."""
    return (
        isinstance(value, list)
        and len(value) > 1
        and not any(isinstance(cell, list | dict) for cell in value)
    )


def is_turns(value: Any) -> bool:
    """Return True for a list of objects with the key of a turn's role."""
    return bool(value) and isinstance(value, list) and all(has_role(item) for item in value)


def is_objects(value: Any) -> bool:
    """Return True for a list of objects that are not turns of a conversation."""
    return (
        bool(value)
        and isinstance(value, list)
        and all(isinstance(item, dict) and not has_role(item) for item in value)
    )


def has_role(value: Any) -> bool:
    return isinstance(value, dict) and not value.keys().isdisjoint(ROLE_KEYS)


def no_rows_error(file: Path, value: dict[str, Any]) -> UserError:
    """Return the error for an object without rows, with the jq command that writes its longest list as rows. There is
    no command if one of these rows would have no text."""
    keys = [key for key in value if key.lower() not in METADATA_KEYS]
    lists = [key for key in keys if is_objects(value[key])]
    texts = [key for key in keys if is_text(value[key])] if lists else []
    longest = max(lists, key=lambda key: len(value[key]), default=None)
    rows = [*value.values()] if longest is None else value[longest]
    names = ", ".join([*value][:MAX_SHOWN])
    problem = f"{file}: one JSON object without rows, with the keys {names}"
    if not all(map(holds_text, rows)):
        return UserError(
            f"{problem}. No setting reads it: write one row a line, as an object with its texts."
        )
    path = ".[]" if longest is None else f".{as_json(longest)}[]"
    program = f"{{{', '.join(map(as_json, texts))}}} + {path}" if texts else path
    command = f"jq -c {shlex.quote(program)} {shlex.quote(str(file))} > rows.jsonl"
    return UserError(f"{problem}. Write one row a line: {command}")


def as_json(key: str) -> str:
    return json.dumps(key, ensure_ascii=False)


def holds_text(row: Any) -> bool:
    """Return True for an object with a text or with turns."""
    return isinstance(row, dict) and any(
        item and (is_text(item) or is_turns(item)) for item in row.values()
    )


def is_text(value: Any) -> bool:
    """Return True for a text or a list of texts."""
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    )
