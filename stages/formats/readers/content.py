"""Open a text file, packed or not, within limits: a line may be as long as its file, and a few packed bytes may unpack
to endless content."""

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO

import pyarrow as pa

from stages.config.blocks.data import ReadLimits
from stages.config.errors import UserError
from stages.formats.readers.encodings import likely_encodings, preview
from stages.formats.readers.row import BadRow, NeedsSetting, Way

MEGABYTE = 1_000_000
ANY_BYTES = "latin-1"  # the encoding that has a character for every byte
BLANK = b"\xef\xbb\xbf \t\r\n"  # the byte order mark and white space
PEEK_BYTES = 1 << 16  # the beginning of a file, from which its kind is detected
# The encodings that begin with a mark; that of UTF-32 begins with UTF-16's
MARKED = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
PACKED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda file: pa.input_stream(pa.PythonFile(file), compression="zstd"),
}


class Content:
    """The unpacked content of an open file, in UTF-8. A longer line than `limits.line` is a UserError. `encoding`: of the
    file, if it is another."""

    def __init__(
        self,
        file: Path,
        plain: io.FileIO,
        start: bytes,
        limits: ReadLimits,
        encoding: str | None = None,
    ):
        self.file, self.limits = file, limits
        self.most, self.longest = limits.line, limits.line * MEGABYTE
        unpack = next((unpack for magic, unpack in PACKED.items() if start.startswith(magic)), None)
        raw: io.RawIOBase = Unpacked(file, unpack(plain), limits.unpacked) if unpack else plain
        if not encoding:
            encoding = next((name for mark, name in MARKED.items() if start.startswith(mark)), None)
        if encoding:
            raw = Recoded(file, raw, encoding)
        self.stream = io.BufferedReader(raw, PEEK_BYTES)
        self.start = start

    def lines(self, stream: IO[AnyStr]) -> Iterator[AnyStr]:
        """Yield the lines of the stream, or of a text decoded from it."""
        while line := stream.readline(self.longest + 1):
            self.refuse_longer(len(line))
            yield line

    def refuse_longer(self, length: int) -> None:
        """Raise UserError if a line, or a value of a JSON array, is longer than the limit."""
        if length > self.longest:
            whole_file = self.file.stat().st_size // MEGABYTE + 1
            more = max(2 * self.most, whole_file)
            raise UserError(
                f"{self.file}: a line has more than {self.most} MB. Type data.max_line={more} to allow more."
            )

    def decode(self, content: bytes) -> str:
        """Return the text of the whole content; raise UserError if it is not UTF-8."""
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise encoding_error(self.file, line, line_around(content, error.start)) from error

    def not_utf8_error(self, number: int, row: bytes) -> BadRow:
        """Return the error of a row that is not UTF-8 in a file whose other rows are.
        Raise UserError if no row of the file has a character in UTF-8 beyond ASCII: all of it has another encoding."""
        if not self.has_utf8:
            raise encoding_error(self.file, number, row)
        return BadRow("", "not UTF-8, as other rows of the file are")

    @cached_property
    def has_utf8(self) -> bool:
        """Whether a line of the file has a character in UTF-8 beyond ASCII."""
        with io.FileIO(self.file) as plain:
            whole = Content(self.file, plain, self.start, self.limits)
            return any(not line.isascii() and is_utf8(line) for line in whole.stream)


class Unpacked(io.RawIOBase):
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
                f"{self.file}: unpacks to over {self.most:,} MB. Type data.max_file={2 * self.most} to allow more."
            )
        buffer[: len(content)] = content
        return len(content)


class Recoded(io.RawIOBase):
    """The content of a text file of another encoding, as UTF-8. Raise UserError where it has another one still."""

    def __init__(self, file: Path, stream: io.RawIOBase, encoding: str):
        self.file, self.stream, self.encoding = file, stream, encoding
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.waiting = b""
        self.is_read = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.waiting and not self.is_read:
            content = self.stream.read(PEEK_BYTES) or b""
            self.is_read = not content
            try:
                self.waiting = self.decoder.decode(content, final=self.is_read).encode()
            except UnicodeError as error:
                problem = f"{self.file}: the file is not in the encoding {self.encoding} ({error})"
                ways = [Way({"encoding": None}, "if it is UTF-8")]
                if self.encoding != ANY_BYTES:
                    ways.append(
                        Way({"encoding": ANY_BYTES}, "to read any bytes, as of Western Europe")
                    )
                raise NeedsSetting(problem, *ways) from error
        size = min(len(buffer), len(self.waiting))
        buffer[:size], self.waiting = self.waiting[:size], self.waiting[size:]
        return size


def is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def line_around(content: bytes, place: int) -> bytes:
    """Return the line of a content that has this place."""
    start = content.rfind(b"\n", 0, place) + 1
    end = content.find(b"\n", place)
    return content[start:] if end < 0 else content[start:end]


def encoding_error(file: Path, number: int, line: bytes, is_cut: bool = False) -> NeedsSetting:
    """Return the error for a file that is not UTF-8, with the settings that may read it, and how a word would read
    then."""
    encodings = likely_encodings(line, is_cut) or [ANY_BYTES]
    ways = list[Way]()
    for index, encoding in enumerate(encodings):
        word = preview(line, encoding, encodings[:index])
        if word or not ways:
            ways.append(Way({"encoding": encoding}, f"if {word!r} is right" if word else ""))
    return NeedsSetting(f"{file}: line {number}: the file is not UTF-8", *ways)
