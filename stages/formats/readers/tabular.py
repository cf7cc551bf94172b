"""Read the rows of CSV, TSV, Parquet and Arrow files, with a group of rows in memory at a time."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.config.errors import UserError
from stages.formats.readers.content import Content, encoding_error, is_utf8
from stages.formats.readers.row import BadRow, Row, validate_columns

GROUP = 1024  # rows
# Excel's line above the header, with the separator
SEPARATOR = re.compile(r"\ufeff?sep=(.)\s*", re.IGNORECASE)


def csv_rows(content: Content) -> Iterator[Row]:
    """Yield the rows of a CSV file with a header. A row with more or fewer fields than the header is unusable."""
    file, name = content.file, str(content.file)
    text = io.TextIOWrapper(content.stream, "utf-8-sig", "surrogateescape", newline="")
    lines = content.lines(text)
    first = next(lines, "")
    delimiter = "\t" if ".tsv" in file.suffixes and "\t" in first else max(",\t;|", key=first.count)
    if separator := SEPARATOR.fullmatch(first):
        delimiter, first = separator[1], ""
    # 131,072 characters by default: a document in a field may have more
    csv.field_size_limit(content.longest)
    reader = csv.reader(chain([first], lines), strict=True, delimiter=delimiter)
    header = list[str]()
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if not header:
                raise UserError(
                    f"{file}: line {line}: the header is not CSV: {error}. No setting reads it: mend that line."
                ) from error
            where = f", in the row from line {line} on" if reader.line_num > line else ""
            # an open quote takes the lines after it, too
            for lost in range(line, reader.line_num + 1):
                yield Row(name, lost, None, BadRow("", f"broken CSV: {error}{where}"))
            continue
        if fields is None:
            return
        if not fields:
            continue
        raw = "\n".join(fields).encode("utf-8", "surrogateescape")
        if not header:
            if not is_utf8(raw):
                raise encoding_error(file, line, raw)
            header = fields
            validate_columns(name, header)
            continue
        if not is_utf8(raw):
            decoded = raw.decode("utf-8", "replace").split("\n")
            yield Row(name, line, decoded, content.not_utf8_error(line, raw))
        elif len(fields) != len(header):
            reason = f"{len(fields)} fields, but the header has {len(header)}"
            yield Row(name, line, fields, BadRow("", reason))
        else:
            yield Row(name, line, dict(zip(header, fields, strict=True)))


def parquet_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file."""
    table = pq.ParquetFile(file)
    yield from batch_rows(str(file), table.schema_arrow, table.iter_batches(GROUP))


def arrow_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of an Arrow file, or of an Arrow stream as `datasets` writes it."""
    with pa.memory_map(str(file)) as source:
        try:
            table = pa.ipc.open_file(source)
            batches = (table.get_batch(i) for i in range(table.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            batches = table = pa.ipc.open_stream(source)
        yield from batch_rows(str(file), table.schema, batches)


def batch_rows(
    name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch | pa.Table]
) -> Iterator[Row]:
    """Yield the rows of a table. A row with a value that Python cannot hold is unusable."""
    validate_columns(name, schema.names)
    classes = named_classes(schema)
    number = 0
    for batch in batches:
        try:
            values = batch.to_pylist()
        except (ValueError, OverflowError):
            values = [single_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
        for value in values:
            number += 1
            if isinstance(value, BadRow):
                yield Row(name, number, None, value, unit="row")
            else:
                yield Row(name, number, with_texts(value, classes), unit="row")


def single_row(batch: pa.RecordBatch | pa.Table) -> Any:
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return BadRow("", f"cannot be read: {error}")


def named_classes(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the class names, by column, that `datasets` stores in a table whose labels are numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: feature["names"]
            for name, feature in features.items()
            if feature.get("_type") == "ClassLabel"
        }
    except (LookupError, ValueError, TypeError, AttributeError):
        return {}


def with_texts(row: dict[str, Any], classes: dict[str, list[str]]) -> dict[str, Any]:
    """Return a row with bytes and class numbers as text if they have one, and without null fields inside its columns:
    Arrow gives every struct the fields that any other row's struct has."""
    for column, value in row.items():
        if isinstance(value, bytes):
            with suppress(UnicodeDecodeError):
                row[column] = value.decode()
        elif isinstance(value, list | dict):
            row[column] = without_nulls(value)
        elif isinstance(value, int) and 0 <= value < len(classes.get(column, ())):
            row[column] = classes[column][value]
    return row


def without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value
