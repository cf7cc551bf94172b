"""A file's lines, none longer than what a key allows: a line may be as long as the file, and memory is not."""

import io
from collections.abc import Iterator
from pathlib import Path

from stages.config.errors import UserError

MEGABYTE = 1_000_000


class BoundedLines(io.BufferedReader):
    """A stream of bytes whose lines have at most `most` megabytes; a longer one is a UserError."""

    def __init__(self, raw: io.RawIOBase, size: int, file: Path, most: int):
        super().__init__(raw, size)
        self.file, self.most, self.longest = file, most, most * MEGABYTE

    def __next__(self) -> bytes:
        if line := self.readline(self.longest + 1):
            self.refuse_longer(len(line))
            return line
        raise StopIteration

    def refuse_longer(self, length: int) -> None:
        """Raise UserError where a line, or a value that is read as one, is longer than it may be."""
        if length > self.longest:
            raise UserError(f"{self.file}: a line of more than {self.most} MB. data.max_line=MB reads longer ones.")

    def text_lines(self, text: io.TextIOWrapper) -> Iterator[str]:
        """Yield the lines of a text that is decoded from this stream. A character is a byte or more."""
        while line := text.readline(self.longest + 1):
            self.refuse_longer(len(line))
            yield line
