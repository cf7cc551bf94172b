"""Read files, folders and hub datasets row by row. A row that cannot be read keeps the reason as its error.

The readers know JSON, JSON lines, CSV, TSV, Parquet, Arrow and plain text, also compressed by gzip, bzip2, xz or
Zstandard. They detect the kind from the first bytes, and only CSV, TSV and plain text from the name. A file of another
kind is refused with the command that converts it."""

import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.config.blocks.data import ReadLimits, Source
from stages.config.choices import DOCUMENTS
from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.config.override_text import override
from stages.formats.readers.content import BLANK, PEEK_BYTES, Content, encoding_error
from stages.formats.readers.encodings import likely_encodings
from stages.formats.readers.json_text import is_turns, json_rows
from stages.formats.readers.row import NeedsSetting, Row, Way
from stages.formats.readers.synthetic import Readers, dataset_folder, synthetic_readers
from stages.formats.readers.tabular import GROUP, arrow_rows, batch_rows, csv_rows, parquet_rows
from stages.formats.threads import thread_rows
from stages.store.source_files import data_files, locate

DEFAULT_LIMITS = ReadLimits()
HEAD_BYTES = 1000  # from which the encoding is told; even, as UTF-16 has two bytes a character
ENDS = dict(zip(DOCUMENTS, (r"\Z", r"\n\s*\n\s*\n", r"\n\s*\n", r"\n"), strict=True))

# The hub names files and folders by split, and the shards of a split like train-00000-of-00002.parquet.
SPLIT = re.compile(
    r"(?:.*[-_. ])?(train|test|validation|valid|val|dev|eval)(?:ing)?(?![a-z])", re.IGNORECASE
)
SHARD = re.compile(r"-\d{5}-of-\d{5}|\.")
HELD_OUT = dict.fromkeys(("valid", "val", "dev", "eval"), "validation")

# Kinds of files that are not read, by their first bytes or the ends of their names, each with a way to convert it.
UNSUPPORTED = {
    start.encode("latin-1"): kind for start, kind in read_beside(__file__)["first_bytes"].items()
}
UNSUPPORTED_TEXT: dict[str, str] = read_beside(__file__)["suffixes"]
TAR_MAGIC = slice(257, 262)  # the place of `ustar` in a tar archive


@dataclass
class Table:
    """A file of rows, or a hub dataset, that can be read again. `block`: where the keys of its source stand. `compared`:
    read trees of messages as preferences."""

    name: str
    block: str
    compared: bool
    reading: Callable[[], Iterator[Row]]

    def rows(self) -> Iterator[Row]:
        """Yield the rows. Raise UserError for a file that cannot be read, with the setting that reads it."""
        try:
            yield from thread_rows(map(with_turns, self.reading()), self.compared)
        except NeedsSetting as error:
            raise error.typed(self.block) from error


def with_turns(row: Row) -> Row:
    """Return a row whose value is a list of turns as an object with `messages`."""
    if is_turns(row.value):
        row.value = {"messages": row.value}
    return row


def source_tables(source: Source, key: str, compared: bool = False) -> Iterator[Table]:
    """Yield the files of a source, or its hub dataset. `compared`: read trees of messages as preferences."""
    block = key.rpartition(".")[0]
    if (local := locate(source.path, key)) is None:
        dataset = load_hub_dataset(source, key)
        yield Table(source.path, block, compared, partial(hub_rows, source.path, dataset))
        return
    read = partial(
        rows_of,
        documents=source.documents,
        limits=source.limits or DEFAULT_LIMITS,
        encoding=source.encoding,
    )
    files, readers = data_files(local, key), Readers()
    if local.is_dir():
        local = dataset_folder(local, key)
        readers = synthetic_readers(local, key, read)
        files = [*readers] or [file for file in files if file.is_relative_to(local)]
        refuse_splits(local, files, key)
    for file in files:
        yield Table(str(file), block, compared, readers.get(file) or partial(read, file))


def refuse_splits(folder: Path, files: list[Path], key: str) -> None:
    """Raise UserError for a folder with several splits: reading all of them would train on held-out rows."""
    path_by_split = dict[str, Path]()
    for file in files:
        place = folder
        for part in file.relative_to(folder).parts:
            if named := SPLIT.match(part):
                split = named[1].lower()
                shards = f"{SHARD.split(part)[0]}*" if place / part == file else part
                path_by_split.setdefault(HELD_OUT.get(split, split), place / shards)
                break
            place /= part
    if len(path_by_split) > 1:
        splits = sorted(path_by_split)
        train_first = sorted(splits, key=lambda name: name != "train")
        ways = " or ".join(override(key, str(path_by_split[name])) for name in train_first)
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


def hub_rows(name: str, dataset: Any) -> Iterator[Row]:
    tables = dataset.with_format("arrow").iter(GROUP)
    return batch_rows(name, dataset.features.arrow_schema, tables)


def rows_of(
    file: Path,
    documents: str | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
    encoding: str | None = None,
) -> Iterator[Row]:
    """Yield the rows of a file. `documents` says how plain text is divided."""
    try:
        with io.FileIO(file) as plain:
            start = plain.read(8)
            plain.seek(0)
            if start.startswith(b"PAR1") or file.suffix == ".parquet":
                yield from parquet_rows(file)
            elif start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
                yield from arrow_rows(file)
            else:
                content = Content(file, plain, start, limits, encoding)
                yield from content_rows(content, documents)
    except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{file}: {error.strerror}.") from error
        raise UserError(
            f"{file}: the file is broken or cut off ({error}), and no setting reads it. Download or write it again."
        ) from error


def content_rows(content: Content, documents: str | None) -> Iterator[Row]:
    """Return the rows of a text file: JSON unless the name says otherwise, and it does not begin like JSON."""
    start = content.stream.peek(PEEK_BYTES)
    refuse_unsupported(content.file, start)
    head = start[:HEAD_BYTES]
    is_cut = len(start) > len(head)
    if b"\0" in head and likely_encodings(head, is_cut):  # UTF-16 without its mark
        raise encoding_error(content.file, 1, head, is_cut)
    suffixes = {suffix.lower() for suffix in content.file.suffixes}
    is_json = start.lstrip(BLANK)[:1] in (b"{", b"[")
    if suffixes & {".txt", ".text", ".md"} and (documents or not is_json):
        return text_rows(content.file, content.decode(content.stream.read()), documents)
    if suffixes & {".csv", ".tsv"} and not is_json:
        return csv_rows(content)
    return json_rows(content)


def refuse_unsupported(file: Path, start: bytes) -> None:
    """Raise UserError for a file of a kind that is not read, with the command that converts it."""
    kinds = [kind for magic, kind in UNSUPPORTED.items() if start.startswith(magic)]
    if start[TAR_MAGIC] == b"ustar":
        kinds = ["a tar archive. Unpack it: tar -xf {name}"]
    if start.lstrip()[:1] not in (b"{", b"["):
        kinds += [kind for suffix, kind in UNSUPPORTED_TEXT.items() if suffix in file.suffixes]
    if kinds:
        kind = kinds[0].format(name=file, stem=file.stem, suffix=file.suffix)
        raise UserError(f"{file}: is {kind}.")


def text_rows(file: Path, text: str, documents: str | None) -> Iterator[Row]:
    """Yield the documents of a plain text, each as a row with `text`."""
    text = text.replace("\r\n", "\n")
    if not text.strip():
        return
    divided = {
        name: [part for part in re.split(end, text) if part.strip()] for name, end in ENDS.items()
    }
    if documents is None:
        ways = [
            Way({"documents": name}, f"for {len(parts):,} documents")
            for name, parts in divided.items()
        ]
        raise NeedsSetting(f"{file}: plain text does not say where a document ends", *ways)
    for number, part in enumerate(divided[documents], 1):
        yield Row(str(file), number, {"text": part.strip()}, unit="row")
