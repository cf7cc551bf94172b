"""Reading other people's files, folders and hub datasets, row by row; a row that cannot be used keeps its reason.

JSON and JSON lines (also gzipped; told apart by content, not by name), CSV and Parquet, holding Alpaca's
instruction/input/output, chat `messages`, ShareGPT's `conversations`, prompt/completion, or plain text.
"""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.config.errors import UserError
from stages.config.schema import Source
from stages.store.pinning import MEMORY, locate, readable

GZIP = b"\x1f\x8b"
CHUNK = 1 << 24
csv.field_size_limit(sys.maxsize)  # 131,072 characters by default: a document in a field may have more


class BadRow(Exception):
    """Why a row cannot be used, and which field is to blame."""

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field, self.reason = field, reason


@dataclass
class Row:
    """A row as it was read: its value, or with `error` why it cannot be used."""

    file: str
    line: int  # of the file where it has lines, else the row's number; both from 1
    value: Any
    error: BadRow | None = None


def rows(source: Source, key: str) -> Iterator[Row]:
    """Every row of a source, in order."""
    local = locate(source.path, key)
    if local is None:
        from datasets import load_dataset

        try:
            found = load_dataset(source.path, revision=source.revision, split=source.hub_split)
        except Exception as error:  # whatever the hub, its files or its scripts raise
            raise UserError(f"{key}={source.path}: {' '.join(str(error).split())[:300]}") from error
        for i, value in enumerate(found, 1):
            yield Row(source.path, i, value)
        return
    for file in readable(local, key):
        yield from rows_of(file)


def rows_of(file: Path) -> Iterator[Row]:
    """The rows of a file, told apart by content; Parquet and CSV by name."""
    try:
        if file.suffix == ".parquet":
            yield from parquet_rows(file)
            return
        content = file.read_bytes()
        if content[:2] == GZIP:
            bounded(file)
            content = gzip.decompress(content)
    except (EOFError, zlib.error, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{file}: {error.strerror}.") from error
        raise UserError(f"{file}: cannot be read, it is broken or cut off ({error}).") from error
    if ".csv" in file.suffixes:
        yield from csv_rows(file, content)
    elif content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
        yield from array_rows(file, content)
    else:
        yield from line_rows(file, content)


def bounded(file: Path) -> None:
    """Raise UserError where a compressed file holds more than this machine's memory: a few bytes may be endless."""
    size = 0
    with gzip.open(file) as packed:
        while chunk := packed.read(CHUNK):
            size += len(chunk)
            if size > MEMORY:
                raise UserError(f"{file}: unpacks to more than the {MEMORY / 2**30:.0f} GiB of this machine's memory.")


def parquet_rows(file: Path) -> Iterator[Row]:
    """The rows of a Parquet file. One with a value that Python cannot hold, or with bytes that are no text, is bad."""
    table = pq.read_table(file)
    if twice := repeated(table.column_names):
        raise UserError(f"{file}: the column {twice!r} is there twice. Rename one.")
    try:
        values = table.to_pylist()
    except (ValueError, OverflowError):
        for i in range(table.num_rows):
            try:
                yield Row(str(file), i + 1, table.slice(i, 1).to_pylist()[0])
            except (ValueError, OverflowError) as error:
                yield Row(str(file), i + 1, None, BadRow("", f"cannot be read: {error}"))
        return
    for i, value in enumerate(values, 1):
        yield Row(str(file), i, value)


def csv_rows(file: Path, content: bytes) -> Iterator[Row]:
    """The rows of a CSV file with a header. One that does not fit the header is bad: who knows what stands where."""
    lines = csv.reader(io.StringIO(content.decode("utf-8-sig", "surrogateescape"), newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = lines.line_num + 1
        try:
            fields = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise UserError(f"{file}: the header is no CSV: {error}.") from error
            yield Row(str(file), line, None, BadRow("", f"broken CSV: {error}"))
            continue
        if not fields:
            continue
        if header is None:
            header = fields
            if twice := repeated(header):
                raise UserError(f"{file}: the column {twice!r} is there twice. Rename one.")
            continue
        shown = [field.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for field in fields]
        if shown != fields:
            yield Row(str(file), line, shown, BadRow("", "not UTF-8"))
        elif len(fields) != len(header):
            yield Row(str(file), line, fields, BadRow("", f"{len(fields)} fields, the header has {len(header)}"))
        else:
            yield Row(str(file), line, dict(zip(header, fields, strict=True)))


def array_rows(file: Path, content: bytes) -> Iterator[Row]:
    """The rows of a JSON array. A broken one has no rows that could be told apart: it is an error as a whole."""
    try:
        text = content.decode("utf-8-sig")
        values = value_of(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file}: line {error.lineno}: {error.msg}. Mend the array, or use one JSON object a line."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from error
    except BadRow:  # of one of them
        for i, part in enumerate(elements(text), 1):
            yield json_row(file, i, part)
        return
    for i, value in enumerate(values, 1):
        yield Row(str(file), i, value)


def line_rows(file: Path, content: bytes) -> Iterator[Row]:
    """JSON lines. Only \\n ends a line: U+2028 may stand inside a string."""
    for i, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield json_row(file, i, line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            yield Row(str(file), i, line.decode(errors="replace"), BadRow("", "not UTF-8"))


def json_row(file: Path, place: int, text: str) -> Row:
    try:
        return Row(str(file), place, value_of(text))
    except json.JSONDecodeError as error:
        return Row(str(file), place, text, BadRow("", f"broken JSON: {error.msg}"))
    except BadRow as reason:
        return Row(str(file), place, text, reason)


def value_of(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        JSONDecodeError: where it is none.
        BadRow: where it is one that cannot be held: nested too deeply, a number that is too long or none, a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=no_number)
    except RecursionError:
        raise BadRow("", "broken JSON: nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python reads no integer of more than some thousand digits
        raise BadRow("", "broken JSON: a number with too many digits") from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadRow(str(repeated([key for key, _ in pairs])), "broken JSON: the key stands there twice")
    return found


def no_number(name: str) -> None:
    raise BadRow("", f"broken JSON: {name} is no number")


def repeated(names: list[str]) -> str | None:
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


def elements(text: str) -> Iterator[str]:
    """The texts of a JSON array's elements."""
    depth, start = 0, 0
    for token in re.finditer(r'"[^"\\]*(?:\\.[^"\\]*)*"|[][{},]', text):
        mark = token[0]
        depth += (mark in "[{") - (mark in "]}")
        if (depth, mark) == (1, "["):
            start = token.end()
        elif (depth, mark) in ((1, ","), (0, "]")):
            yield text[start : token.start()].strip()
            start = token.end()
