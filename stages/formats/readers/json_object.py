"""A file that begins with a JSON object: it has one a line, or several lines for each, or it is a single one, in which
the rows stand as pandas and others write tables."""

import io
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from stages.config.errors import UserError
from stages.formats.readers.json_lines import BLANK, COMMENT, DECODER, json_message, line_rows, parse_value
from stages.formats.readers.row import BadRow, Row
from stages.formats.turns import ROLE_KEYS

# Where an object has its rows under one key, which is called so, and the other keys tell of the whole.
ROW_KEYS = ("data", "rows", "instances", "examples", "records", "samples", "items", "train", "results", "entries")
METADATA_KEYS = set(
    "version schema license licence info meta metadata name url source date created count total num_rows size split "
    "language index format author homepage".split()
)
MAX_SHOWN = 9  # keys, in an error


def object_rows(file: Path, stream: BinaryIO) -> Iterator[Row]:
    """The rows of a file that begins with an object.

    Raises:
        UserError: for a single object that is neither a table nor a row.
    """
    read = [*read_through_next(stream)]
    pretty = read[-1].strip(BLANK) == b"{"
    more = [] if pretty else [*read_through_next(stream)]
    if any(line.strip() for line in more):
        yield from line_rows(file, chain(read, more, stream))
        return
    content = b"".join(chain(read, more, stream))
    values = json_values(file, content)
    if len(values) == 1:
        yield from single_object_rows(file, values[0][1], pretty)
    elif values:
        yield from (Row(str(file), line, value) for line, value in values)
    else:
        yield from line_rows(file, io.BytesIO(content))


def read_through_next(stream: BinaryIO) -> Iterator[bytes]:
    """Lines up to the next with something in it."""
    for line in stream:
        yield line
        if line.strip(BLANK):
            return


def json_values(file: Path, content: bytes) -> list[tuple[int, Any]]:
    """The values that stand in a file one after another, with their lines; none where there is anything else.

    Raises:
        UserError: where a comment stands between them, or in one.
    """
    values, position = list[tuple[int, Any]](), 0
    try:
        text = content.decode("utf-8-sig")
        while position < len(text.rstrip()):
            position = len(text) - len(text[position:].lstrip())
            line = text.count("\n", 0, position) + 1
            value, position = parse_value(text, lambda whole, at=position: DECODER.raw_decode(whole, at))  # type: ignore[misc]
            values.append((line, value))
    except json.JSONDecodeError as error:
        if COMMENT.match(error.doc, error.pos):
            line = error.doc.count("\n", 0, error.pos) + 1
            raise UserError(f"{file}: line {line}: {json_message(error)}.") from error
        return []
    except (UnicodeDecodeError, BadRow):
        return []
    return values


def single_object_rows(file: Path, value: dict[str, Any], pretty: bool) -> Iterator[Row]:
    rows = table_rows(value)
    if {".jsonl", ".ndjson"} & {*file.suffixes} and all(isinstance(each, list) for each in value.values()):
        rows = None  # it is named for one row a line, and this is one
    if rows is None:
        several = any(is_objects(each) for each in value.values())
        if several if pretty else several and {*map(str.lower, value)} & {*ROW_KEYS}:
            raise no_rows_error(file, value)
        if pretty and not any(isinstance(each, str) for each in value.values()):
            raise no_rows_error(file, value)
    for i, row in enumerate([value] if rows is None else rows, 1):
        yield Row(str(file), i, row)


def table_rows(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of an object that is a table: as pandas writes it (`split`, `columns`, `index`), columns as lists, rows
    by their ids, or beside what tells of the whole."""
    columns, data = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(columns, row, strict=False)) for row in data if len(row) == len(columns)]
    wrapped = [key for key, item in value.items() if is_objects(item)]
    if (
        len(wrapped) == 1
        and wrapped[0].lower() in ROW_KEYS
        and {k.lower() for k in value} <= {wrapped[0].lower(), *METADATA_KEYS}
    ):
        return value[wrapped[0]]
    items = [*value.values()]
    if len(items) < 2:
        return None
    if all(isinstance(each, list) and len(each) == len(items[0]) > 1 for each in items):
        if any(isinstance(cell, list | dict) for column in items for cell in column):
            return None
        return [dict(zip(value, cells, strict=True)) for cells in zip(*items, strict=True)]
    if not all(isinstance(each, dict) for each in items):
        return None
    shared = set(items[0]).intersection(*items)
    if shared and all(key.isdecimal() for key in shared) and all({*each} == shared for each in items):
        return [{column: value[column][place] for column in value} for place in items[0]]
    return (
        [{"id": key, **row} for key, row in value.items()] if len(shared) > 1 and not shared & {*ROLE_KEYS} else None
    )


def is_objects(value: Any) -> bool:
    """Whether a value is a list of objects, which are no turns of a conversation."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(o, dict) and not o.keys() & {*ROLE_KEYS} for o in value)
    )


def no_rows_error(file: Path, value: dict[str, Any]) -> UserError:
    """That an object has no rows, and the command that writes them where it has some. What stands beside them comes
    into each, if it may belong there."""
    lists = sorted((key for key in value if is_objects(value[key])), key=lambda key: -len(value[key]))
    text_keys = [k for k, v in value.items() if k.isidentifier() and k.lower() not in METADATA_KEYS and is_text(v)]
    if lists and lists[0].isidentifier():
        path = f"{{{', '.join(text_keys)}}} + .{lists[0]}[]" if text_keys else f".{lists[0]}[]"
    else:
        path = ".[]"
    return UserError(
        f"{file}: one JSON object with the keys {', '.join([*value][:MAX_SHOWN])}, and no rows. Write one object a line: "
        f"jq -c '{path}' {file.name} > rows.jsonl"
    )


def is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))
