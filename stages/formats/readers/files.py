"""Read files, folders and hub datasets row by row. A row that cannot be read keeps the reason as its error.

The readers know JSON, JSON lines, CSV, TSV, Parquet, Arrow and plain text, also compressed by gzip, bzip2, xz or
Zstandard. They detect the kind from the first bytes, and only CSV, TSV and plain text from the name. A file of another
kind is refused with the command that converts it."""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from stages.config.blocks.data import ReadLimits, Source
from stages.config.choices import DOCUMENTS
from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.formats.readers.json_array import array_rows
from stages.formats.readers.json_lines import BLANK, MEGABYTE, BoundedLines, decode_text, line_rows
from stages.formats.readers.json_object import object_rows
from stages.formats.readers.row import Row
from stages.formats.readers.tabular import (
    arrow_rows,
    csv_rows,
    decode_bytes,
    parquet_rows,
    with_class_names,
)
from stages.formats.threads import thread_rows
from stages.store.source_files import data_files, locate

PACKED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda file: pa.input_stream(pa.PythonFile(file), compression="zstd"),
}
DEFAULT_LIMITS = ReadLimits()
PEEK_BYTES = 1 << 16  # the beginning of a file, from which its kind is detected
ENDS = dict(zip(DOCUMENTS, (r"\Z", r"\n\s*\n\s*\n", r"\n\s*\n", r"\n"), strict=True))

# The hub names files and folders by split, and the shards of a split like train-00000-of-00002.parquet.
SPLIT = re.compile(
    r"(?:.*[-_. ])?(train|test|validation|valid|val|dev|eval)(?:ing)?(?![a-z])", re.IGNORECASE
)
SHARD = re.compile(r"-\d{5}-of-\d{5}|\.")
HELD_OUT = dict.fromkeys(("valid", "val", "dev", "eval"), "validation")

# takes a function that returns how much of a file was read so far
Watch = Callable[[Callable[[], float]], None]

# Kinds of files that are not read, by their first bytes or the ends of their names, each with a way to convert it.
UNSUPPORTED = {
    start.encode("latin-1"): kind for start, kind in read_beside(__file__)["first_bytes"].items()
}
UNSUPPORTED_TEXT: dict[str, str] = read_beside(__file__)["suffixes"]
TAR_MAGIC = slice(257, 262)  # the place of `ustar` in a tar archive


class Table:
    """A file of rows that can be read again. `size`, and what `read()` has read of it, are bytes (hub: rows)."""

    def __init__(
        self, name: str, size: int, compared: bool, reading: Callable[[Watch], Iterator[Row]]
    ):
        self.name, self.size, self.compared, self.reading = name, size, compared, reading
        self.read: Callable[[], float] = lambda: 0.0

    def rows(self) -> Iterator[Row]:
        return thread_rows(self.reading(self.watch), self.compared)

    def watch(self, read: Callable[[], float]) -> None:
        self.read = read


def source_tables(source: Source, key: str, compared: bool = False) -> Iterator[Table]:
    """Yield the files of a source, or its hub dataset. `compared`: read trees of messages as preferences."""
    if (local := locate(source.path, key)) is None:
        dataset = load_hub_dataset(source, key)
        yield Table(source.path, len(dataset), compared, partial(hub_rows, source.path, dataset))
        return
    files = data_files(local, key)
    if local.is_dir():
        refuse_splits(local, files, key)
    for file in files:
        reading = partial(rows_of, file, source.documents, limits=source.limits or DEFAULT_LIMITS)
        yield Table(str(file), file.stat().st_size, compared, reading)


def refuse_splits(folder: Path, files: list[Path], key: str) -> None:
    """Raise UserError for a folder with several splits: reading all of them would train on held-out rows."""
    path_by_split = dict[str, str]()
    for file in files:
        for part in (below := file.relative_to(folder)).parts:
            if named := SPLIT.match(part):
                place = folder / Path(*below.parts[: below.parts.index(part)])
                shards = f"{SHARD.split(part)[0]}*" if part == below.name else part
                path_by_split.setdefault(
                    HELD_OUT.get(split := named[1].lower(), split), str(place / shards)
                )
                break
    if len(path_by_split) > 1:
        splits = sorted(path_by_split)
        train_first = sorted(splits, key=lambda name: name != "train")
        ways = " or ".join(f"{key}='{path_by_split[name]}'" for name in train_first)
        raise UserError(
            f"{key}={folder}: holds the splits {', '.join(splits)}. Type {ways} to read one of them."
        )


def load_hub_dataset(source: Source, key: str) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(
            source.path, source.subset, revision=source.revision, split=source.hub_split
        )
    except Exception as error:  # whatever the hub, its files or its scripts raise
        raise UserError(f"{key}={source.path}: {' '.join(str(error).split())[:300]}") from error


def hub_rows(name: str, dataset: Any, watch: Watch) -> Iterator[Row]:
    from datasets import ClassLabel

    classes = {
        name: feature.names
        for name, feature in dataset.features.items()
        if isinstance(feature, ClassLabel)
    }
    watch(lambda: number)
    for number, value in enumerate(dataset, 1):
        yield Row(name, number, with_class_names(decode_bytes(value), classes))


def rows_of(
    file: Path,
    documents: str | None = None,
    watch: Watch = lambda read: None,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> Iterator[Row]:
    """Yield the rows of a file. `documents` says how plain text is divided. `watch` takes a progress function."""
    try:
        yield from content_rows(file, documents, watch, limits)
    except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{file}: {error.strerror}.") from error
        raise UserError(
            f"{file}: the file is broken or cut off ({error}). Download or write it again."
        ) from error


def content_rows(
    file: Path, documents: str | None, watch: Watch, limits: ReadLimits
) -> Iterator[Row]:
    with io.FileIO(file) as plain:
        magic = plain.read(8)
        plain.seek(0)
        if magic.startswith(b"PAR1") or file.suffix == ".parquet":
            yield from parquet_rows(file, watch)
            return
        if magic.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            yield from arrow_rows(file)
            return
        with open_bounded(file, plain, magic, limits) as stream:
            yield from stream_rows(file, stream, documents, partial(watch, plain.tell))


def stream_rows(
    file: Path, stream: BoundedLines, documents: str | None, watched: Callable[[], None]
) -> Iterator[Row]:
    """Return the rows of a text file. `watched` starts the progress of files that are read row by row."""
    start = stream.peek(PEEK_BYTES)
    refuse_unsupported(file, start)
    kinds, first = {suffix.lower() for suffix in file.suffixes}, start.lstrip(BLANK)[:1]
    if kinds & {".txt", ".text", ".md"} and (documents or first not in (b"{", b"[")):
        return text_rows(file, stream.read(), documents)
    watched()
    if kinds & {".csv", ".tsv"} and first not in (b"{", b"["):
        return csv_rows(file, stream)
    return {b"[": array_rows, b"{": object_rows}.get(first, line_rows)(file, stream)


def refuse_unsupported(file: Path, start: bytes) -> None:
    """Raise UserError for a file of a kind that is not read, with the command that converts it."""
    kind = next((kind for magic, kind in UNSUPPORTED.items() if start.startswith(magic)), None)
    if start[TAR_MAGIC] == b"ustar":
        kind = "a tar archive. Unpack it: tar -xf {name}"
    if kind is None and start.lstrip()[:1] not in (b"{", b"["):
        kind = next(
            (kind for suffix, kind in UNSUPPORTED_TEXT.items() if suffix in file.suffixes), None
        )
    if kind:
        raise UserError(f"{file}: is {kind.format(name=file, stem=file.stem, suffix=file.suffix)}.")


def open_bounded(file: Path, plain: io.FileIO, magic: bytes, limits: ReadLimits) -> BoundedLines:
    """Open a file for reading, unpacked, within limits: a few packed bytes may unpack to endless content."""
    unpack = next((unpack for head, unpack in PACKED.items() if magic.startswith(head)), None)
    raw = UnpackedFile(file, unpack(plain), limits.unpacked) if unpack else plain
    return BoundedLines(raw, PEEK_BYTES, file, limits.line)


class UnpackedFile(io.RawIOBase):
    """The unpacked content of a packed file; more than `most` megabytes of it are a UserError."""

    def __init__(self, file: Path, stream: BinaryIO, most: int):
        self.file, self.stream, self.most, self.size = file, stream, most, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.stream.read(len(buffer))
        self.size += len(content)
        if self.size > self.most * MEGABYTE:
            raise UserError(
                f"{self.file}: unpacks to over {self.most:,} MB. Type data.max_file=MB to allow more."
            )
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self.stream.close()
        super().close()


def text_rows(file: Path, content: bytes, documents: str | None) -> Iterator[Row]:
    """Yield the documents of a plain text, each as a row with `text`."""
    text = decode_text(file, content).replace("\r\n", "\n")
    if not text.strip():
        return
    divided = {
        name: [part for part in re.split(end, text) if part.strip()] for name, end in ENDS.items()
    }
    if documents is None:
        counts = ", ".join(f"{name} ({len(parts):,})" for name, parts in divided.items())
        way_out = "Type `documents: WORD` in the source; the words, with the number of documents by each, are"
        raise UserError(
            f"{file}: plain text does not say where a document ends. {way_out} {counts}."
        )
    for i, part in enumerate(divided[documents], 1):
        yield Row(str(file), i, {"text": part.strip()})
