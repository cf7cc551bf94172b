"""Open a text file, packed or not, within limits: a line may be as long as its file, and a few packed bytes may unpack
to endless content."""

import bz2
import gzip
import io
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO

import pyarrow as pa

from stages.config.blocks.data import ReadLimits
from stages.config.errors import UserError
from stages.formats.readers.row import BadRow

MEGABYTE = 1_000_000
BLANK = b"\xef\xbb\xbf \t\r\n"  # the byte order mark and white space
PEEK_BYTES = 1 << 16  # the beginning of a file, from which its kind is detected
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
PACKED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda file: pa.input_stream(pa.PythonFile(file), compression="zstd"),
}


class Content:
    """The unpacked content of an open file. A longer line than `limits.line` is a UserError."""

    def __init__(self, file: Path, plain: io.FileIO, start: bytes, limits: ReadLimits):
        self.file, self.most, self.longest = file, limits.line, limits.line * MEGABYTE
        unpack = next((unpack for magic, unpack in PACKED.items() if start.startswith(magic)), None)
        raw: io.RawIOBase = Unpacked(file, unpack(plain), limits.unpacked) if unpack else plain
        self.stream = io.BufferedReader(raw, PEEK_BYTES)

    def lines(self, stream: IO[AnyStr]) -> Iterator[AnyStr]:
        """Yield the lines of the stream, or of a text decoded from it."""
        while line := stream.readline(self.longest + 1):
            self.refuse_longer(len(line))
            yield line

    def refuse_longer(self, length: int) -> None:
        """Raise UserError if a line, or a value of a JSON array, is longer than the limit."""
        if length > self.longest:
            raise UserError(
                f"{self.file}: a line has more than {self.most} MB. Type data.max_line=MB to allow more."
            )

    def decode(self, content: bytes) -> str:
        """Return the text of the whole content; raise UserError if it is not UTF-8."""
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"{self.file}: line {line}: {not_utf8_error(self.file, content)}."
            ) from error


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
                f"{self.file}: unpacks to over {self.most:,} MB. Type data.max_file=MB to allow more."
            )
        buffer[: len(content)] = content
        return len(content)


def not_utf8_error(file: Path, content: bytes) -> BadRow:
    """Return the error for bytes that are not UTF-8, with the command that converts likely Windows-1252."""
    reason = "not UTF-8"
    try:
        if not CONTROL.search(content.decode("cp1252")):
            command = f"iconv -f CP1252 -t UTF-8 {file} > {file.stem}.utf8{file.suffix}"
            reason = f"not UTF-8, but maybe Windows-1252: {command}"
    except UnicodeDecodeError:
        pass
    return BadRow("", reason)
