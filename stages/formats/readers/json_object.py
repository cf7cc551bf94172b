"""Read files that begin with a JSON object: one object a line, objects over several lines, or one with a table."""

import io
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.formats.readers.json_array import start_of_next
from stages.formats.readers.json_lines import (
    BLANK,
    COMMENT,
    DECODER,
    decode_text,
    json_message,
    line_rows,
    parse_value,
)
from stages.formats.readers.row import BadRow, Row, validate_columns
from stages.formats.turns import ROLE_KEYS

# Keys under which a single object has its rows, and keys that describe the file as a whole.
ROW_KEYS, METADATA_KEYS = (
    set(read_beside(__file__)[name].split()) for name in ("rows", "metadata")
)
MAX_SHOWN = 9  # keys in an error


def object_rows(file: Path, stream: BinaryIO) -> Iterator[Row]:
    """Yield the rows of a file that begins with an object; raise UserError for one object that has no rows."""
    read = [*read_through_next(stream)]
    pretty = not read[-1].rstrip(BLANK).endswith(b"}")  # the object goes on in the next line
    more = [] if pretty else [*read_through_next(stream)]
    if any(line.strip() for line in more):
        yield from line_rows(file, chain(read, more, stream))
        return
    content = b"".join(chain(read, more, stream))
    try:
        values = json_values(file, content)
    except (json.JSONDecodeError, UnicodeDecodeError, BadRow) as error:
        rows = [*line_rows(file, io.BytesIO(content))]
        # the fault is in an object over several lines
        if pretty and all(row.error for row in rows):
            decode_text(file, content)  # raises the error for other encodings
            raise UserError(f"{file}: {error}. Correct the object.") from error
        yield from rows
        return
    if len(values) == 1:
        yield from single_object_rows(file, values[0][1], pretty)
    else:
        yield from (Row(str(file), line, value) for line, value in values)


def read_through_next(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines up to and with the next that is not blank."""
    for line in stream:
        yield line
        if line.strip(BLANK):
            return


def json_values(file: Path, content: bytes) -> list[tuple[int, Any]]:
    """Return the JSON values that follow each other in a file, with their lines. Raise an error for anything
    else: UserError for a comment between or inside the values."""
    values, start, position, line = list[tuple[int, Any]](), 0, 0, 1
    try:
        text = content.decode("utf-8-sig")
        while (position := start_of_next(text, position)) < len(text):
            line += text.count("\n", start, position)
            start = position
            value, position = parse_value(
                text,
                lambda whole, at=position: DECODER.raw_decode(whole, at),  # type: ignore[misc]
            )
            values.append((line, value))
    except json.JSONDecodeError as error:
        if COMMENT.match(error.doc, error.pos):
            line = error.doc.count("\n", 0, error.pos) + 1
            raise UserError(f"{file}: line {line}: {json_message(error)}.") from error
        raise
    return values


def single_object_rows(file: Path, value: dict[str, Any], pretty: bool) -> Iterator[Row]:
    rows = table_rows(file, value)
    if {".jsonl", ".ndjson"} & {*file.suffixes} and all(
        isinstance(item, list) for item in value.values()
    ):
        rows = None  # the name promises one row a line, so the object is a row
    if rows is None:
        several = any(is_objects(item) for item in value.values())
        if several if pretty else several and {*map(str.lower, value)} & ROW_KEYS:
            raise no_rows_error(file, value)
        if pretty and not any(isinstance(item, str) for item in value.values()):
            raise no_rows_error(file, value)
    for i, row in enumerate([value] if rows is None else rows, 1):
        yield Row(str(file), i, row) if isinstance(row, dict) else Row(str(file), i, None, row)


def table_rows(file: Path, value: dict[str, Any]) -> Sequence[dict[str, Any] | BadRow] | None:
    """Return the rows of an object that is a table, else None. It may have the form of pandas (orient `split`,
    `columns` or `index`), lists as columns, rows by their ids, or rows under one of `ROW_KEYS`."""
    columns, data = value.get("columns"), value.get("data")
    if (
        isinstance(columns, list)
        and isinstance(data, list)
        and all(isinstance(row, list) for row in data)
    ):
        # Trino's have types
        columns = [str(name.get("name") if isinstance(name, dict) else name) for name in columns]
        validate_columns(str(file), columns)
        filled = {
            i: dict(zip(columns, row, strict=True))
            for i, row in enumerate(data)
            if len(row) == len(columns)
        }
        fault = f"fields, but `columns` has {len(columns)}"
        return [filled.get(i) or BadRow("", f"{len(row)} {fault}") for i, row in enumerate(data)]
    wrapped = [key for key, item in value.items() if is_objects(item)]
    other_keys = {key.lower() for key in value} - METADATA_KEYS
    if (
        len(wrapped) == 1
        and (row_key := wrapped[0].lower()) in ROW_KEYS
        and other_keys <= {row_key}
    ):
        return value[wrapped[0]]
    items = [*value.values()]
    if len(items) < 2:
        return None
    if all(isinstance(item, list) and len(item) == len(items[0]) > 1 for item in items):
        if any(isinstance(cell, list | dict) for column in items for cell in column):
            return None
        return [dict(zip(value, cells, strict=True)) for cells in zip(*items, strict=True)]
    if not all(isinstance(item, dict) for item in items):
        return None
    shared = set(items[0]).intersection(*items)
    if (
        shared
        and all(key.isdecimal() for key in shared)
        and all({*item} == shared for item in items)
    ):
        return [{column: value[column][place] for column in value} for place in items[0]]
    are_rows = len(shared) > 1 and not shared & {*ROLE_KEYS}
    return [{"id": key, **row} for key, row in value.items()] if are_rows else None


def is_objects(value: Any) -> bool:
    """Return True for a list of objects that are not turns of a conversation."""
    items = value if isinstance(value, list) else []
    return bool(items) and all(
        isinstance(item, dict) and not item.keys() & {*ROLE_KEYS} for item in items
    )


def no_rows_error(file: Path, value: dict[str, Any]) -> UserError:
    """Return the error for an object without rows, with the jq command that writes its longest list as rows."""
    lists = sorted(
        (key for key in value if is_objects(value[key])), key=lambda key: -len(value[key])
    )
    text_keys = [
        k
        for k, v in value.items()
        if k.isidentifier() and k.lower() not in METADATA_KEYS and is_text(v)
    ]
    if lists and lists[0].isidentifier():
        path = f"{{{', '.join(text_keys)}}} + .{lists[0]}[]" if text_keys else f".{lists[0]}[]"
    else:
        path = ".[]"
    keys = ", ".join([*value][:MAX_SHOWN])
    command = f"jq -c '{path}' {file} > rows.jsonl"
    return UserError(
        f"{file}: one JSON object without rows, with the keys {keys}. Write one row a line: {command}"
    )


def is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    )
