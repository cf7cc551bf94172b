"""Read the rows of CSV, TSV, Parquet and Arrow files, with a group of rows in memory at a time."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.config.errors import UserError
from stages.formats.readers.json_lines import BoundedLines, not_utf8_error
from stages.formats.readers.row import BadRow, Row, validate_columns

GROUP = 1024  # rows
# Excel's line above the header, with the separator
SEPARATOR = re.compile(r"\ufeff?sep=(.)\s*", re.IGNORECASE)


def csv_rows(file: Path, stream: BoundedLines) -> Iterator[Row]:
    """Yield the rows of a CSV file with a header. A row with more or fewer fields than the header is unusable."""
    text = stream.text_lines(io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline=""))
    # 131,072 characters by default: a document in a field may have more
    csv.field_size_limit(stream.longest)
    start = next(text, "")
    delimiter = "\t" if ".tsv" in file.suffixes and "\t" in start else max(",\t;|", key=start.count)
    if separator := SEPARATOR.fullmatch(start):
        delimiter, start = separator[1], ""
    lines = csv.reader(
        (line for part in ([start], text) for line in part), strict=True, delimiter=delimiter
    )
    header: list[str] | None = None
    while True:
        line = lines.line_num + 1
        try:
            fields = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise UserError(
                    f"{file}: line {line}: the header is not CSV: {error}. Mend that line."
                ) from error
            where = f", in the row from line {line} on" if lines.line_num > line else ""
            # an open quote takes the lines after it, too
            for lost in range(line, lines.line_num + 1):
                yield Row(str(file), lost, None, BadRow("", f"broken CSV: {error}{where}"))
            continue
        if not fields:
            continue
        if header is None:
            header = fields
            validate_columns(str(file), header)
            continue
        raw_fields = [field.encode("utf-8", "surrogateescape") for field in fields]
        decoded = [content.decode("utf-8", "replace") for content in raw_fields]
        if decoded != fields:
            yield Row(str(file), line, decoded, not_utf8_error(file, b"\n".join(raw_fields)))
        elif len(fields) != len(header):
            yield Row(
                str(file),
                line,
                fields,
                BadRow("", f"{len(fields)} fields, but the header has {len(header)}"),
            )
        else:
            yield Row(str(file), line, dict(zip(header, fields, strict=True)))


def parquet_rows(file: Path, watch: Callable[[Callable[[], float]], None]) -> Iterator[Row]:
    """Yield the rows of a Parquet file. `watch` takes a function that returns how many bytes are read so far."""
    table, row = pq.ParquetFile(file), Row(str(file), 0, None)
    share = file.stat().st_size / max(1, table.metadata.num_rows)
    watch(lambda: row.line * share)
    for row in batch_rows(file, table.schema_arrow, table.iter_batches(GROUP)):
        yield row


def arrow_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of an Arrow file, or of an Arrow stream as `datasets` writes it."""
    with pa.memory_map(str(file)) as source:
        try:
            table = pa.ipc.open_file(source)
            batches = (table.get_batch(i) for i in range(table.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            batches = table = pa.ipc.open_stream(source)
        yield from batch_rows(file, table.schema, batches)


def batch_rows(file: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[Row]:
    """Yield the rows of a table. A row with a value that Python cannot hold is unusable."""
    validate_columns(str(file), schema.names)
    classes = named_classes(schema)
    place = 0
    for batch in batches:
        try:
            values = [with_class_names(decode_bytes(value), classes) for value in batch.to_pylist()]
        except (ValueError, OverflowError):
            values = [read_row(batch, i, classes) for i in range(batch.num_rows)]
        for value in values:
            place += 1
            bad = value if isinstance(value, BadRow) else None
            yield Row(str(file), place, None if bad else value, bad)


def read_row(batch: pa.RecordBatch, i: int, classes: dict[str, list[str]]) -> Any:
    try:
        return with_class_names(decode_bytes(batch.slice(i, 1).to_pylist()[0]), classes)
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


def with_class_names(row: dict[str, Any], classes: dict[str, list[str]]) -> dict[str, Any]:
    for column, names in classes.items():
        if isinstance(row.get(column), int) and 0 <= row[column] < len(names):
            row[column] = names[row[column]]
    return row


def decode_bytes(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with bytes decoded to text if they are UTF-8, and without null fields inside its columns."""
    for column, value in row.items():
        if isinstance(value, bytes):
            with suppress(UnicodeDecodeError):
                row[column] = value.decode()
        elif isinstance(value, list | dict):
            row[column] = without_nulls(value)
    return row


def without_nulls(value: Any) -> Any:
    """Return a value without null fields: Arrow gives every struct the fields that any other row's struct has."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return (
        {k: without_nulls(v) for k, v in value.items() if v is not None}
        if isinstance(value, dict)
        else value
    )
