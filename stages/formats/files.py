"""Reading other people's files, folders and hub datasets, row by row; a row that cannot be used keeps its reason.

JSON and JSON lines (also gzipped; told apart by content, not by name), CSV and Parquet, holding Alpaca's
instruction/input/output, chat `messages`, ShareGPT's `conversations`, prompt/completion, or plain text.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.config.errors import UserError
from stages.config.schema import Source
from stages.store.pinning import locate
from stages.store.work import Work


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
    files = sorted(p for p in local.rglob("*") if p.is_file()) if local.is_dir() else [local]
    for file in files:
        yield from rows_of(file)


def rows_of(file: Path) -> Iterator[Row]:
    try:
        if file.suffix == ".parquet":
            for i, value in enumerate(pq.read_table(file).to_pylist(), 1):
                yield Row(str(file), i, value)
            return
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowInvalid) as error:
        raise UserError(f"{file}: cannot be read, it is broken or cut off ({error}).") from error
    if ".csv" in file.suffixes:
        text = io.StringIO(content.decode("utf-8-sig", errors="replace"), newline="")
        for i, value in enumerate(csv.DictReader(text), 1):
            yield Row(str(file), i, value)
    elif content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
        yield from array_rows(file, content)
    else:
        yield from line_rows(file, content)


def array_rows(file: Path, content: bytes) -> Iterator[Row]:
    """The rows of a JSON array. A broken one has no rows that could be told apart: it is an error as a whole."""
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file}: line {error.lineno}: {error.msg}. Mend the array, or use one JSON object a line."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from error
    for i, value in enumerate(values, 1):
        yield Row(str(file), i, value)


def line_rows(file: Path, content: bytes) -> Iterator[Row]:
    """JSON lines. Only \\n ends a line: U+2028 may stand inside a string."""
    for i, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield Row(str(file), i, json.loads(line.decode("utf-8-sig")))
        except json.JSONDecodeError as error:
            yield Row(str(file), i, line.decode(errors="replace"), BadRow("", f"broken JSON: {error.msg}"))
        except UnicodeDecodeError:
            yield Row(str(file), i, line.decode(errors="replace"), BadRow("", "not UTF-8"))


def quarantine(bad: list[Row], total: int, limit: float, out: Work, key: str = "data.max_bad") -> None:
    """Keep unusable rows with their reasons; stop where they are too many. `key` names the limit's setting."""
    if not bad:
        return
    with open(out / "quarantine.jsonl", "a") as file:
        for row in bad:
            assert row.error is not None
            entry = {"file": row.file, "line": row.line, "field": row.error.field, "reason": row.error.reason}
            file.write(json.dumps({**entry, "row": row.value}, default=str) + "\n")
    first = bad[0]
    told = f"{first.file}: line {first.line}: {first.error}"
    if len(bad) > limit * total:
        raise UserError(
            f"{told}. {len(bad)} of {total} rows are unusable, more than {key}={limit:g} allows; "
            f"all are in {out / 'quarantine.jsonl'} with their reasons."
        )
    out.warn(f"{len(bad)} of {total} rows are unusable and in quarantine.jsonl; the first: {told}")
