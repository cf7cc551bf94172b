"""Read the rows of a JSON array of any length: a piece of the file and one row are in memory at a time."""

import codecs
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stages.config.errors import UserError
from stages.formats.readers.json_lines import DECODER, BoundedLines, json_message, not_utf8_error, parse_value
from stages.formats.readers.row import BadRow, Row

PIECE = 1 << 20  # bytes
SPACE = re.compile(r"[ \t\r\n]*")
MARK = re.compile(SPACE.pattern + "[],]")
TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[]["{},]', re.DOTALL)  # a quote alone begins a string that is cut off


def array_rows(file: Path, stream: BoundedLines) -> Iterator[Row]:
    """Yield the rows of a JSON array. Raise UserError at the first syntax error: no row can be found after it."""
    text = ArrayText(file, stream)
    text.expect("[")
    if text.next_is("]"):
        mark = text.expect("]")
    else:
        number, mark = 0, ","
        while mark == ",":
            number += 1
            yield text.next_row(number)
            mark = text.expect(",]")
    if text.next_is(""):
        raise text.broken_error("Extra data", text.position)


class ArrayText:
    """The piece of a file's text that is being read: the `position` in it, and the number of lines before it."""

    def __init__(self, file: Path, stream: BoundedLines):
        self.file, self.stream, self.decoder = file, stream, codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.position, self.lines_before, self.ended = "", 0, 0, False

    def read_piece(self) -> bool:
        """Drop the text before the position, and read another piece or more. Return False at the end of the file."""
        if self.ended:
            return False
        self.lines_before += self.text.count("\n", 0, self.position)
        self.text, self.position = self.text[self.position :], 0
        self.stream.refuse_longer(len(self.text))
        piece = self.stream.read(max(PIECE, len(self.text)))
        self.ended = not piece
        try:
            self.text += self.decoder.decode(piece, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.lines_before + self.text.count("\n") + error.object.count(b"\n", 0, error.start) + 1
            raise UserError(f"{self.file}: line {line}: {not_utf8_error(self.file, error.object)}.") from error
        return True

    def next_is(self, mark: str) -> bool:
        """Skip white space, and return True if the text goes on with `mark`. At the end of the file return False."""
        while (at := SPACE.match(self.text, self.position).end()) == len(self.text):  # type: ignore[union-attr]
            self.position = at
            if not self.read_piece():
                return False
        self.position = at
        return self.text.startswith(mark, at)

    def expect(self, marks: str) -> str:
        """Read the next character after white space, which must be one of `marks`, and return it."""
        if not self.next_is("") or self.text[self.position] not in marks:
            raise self.broken_error("Expecting ',' delimiter", self.position)
        self.position += 1
        return self.text[self.position - 1]

    def next_row(self, number: int) -> Row:
        """Return the next row. A row that may go on is read again with more text: half of a number is a number."""
        self.next_is("")
        while True:
            try:
                value, end = parse_value(self.text, partial(DECODER.raw_decode, idx=self.position))
                row = Row(str(self.file), number, value)
            except json.JSONDecodeError as error:
                if self.row_end() is None and self.read_piece():
                    continue
                raise self.broken_error(json_message(error), error.pos) from error
            except BadRow as reason:
                end = self.row_end() or len(self.text)
                row = Row(str(self.file), number, self.text[self.position : end].strip(), reason)
            if MARK.match(self.text, end) or self.row_end() is not None or not self.read_piece():
                self.position = end
                return row

    def row_end(self) -> int | None:
        """Return the position where the next row ends, even of a broken row; None if the piece ends before."""
        depth = 0
        for token in TOKEN.finditer(self.text, self.position):
            mark = token[0]
            if mark == '"' or (depth == 0 and mark in ",]"):
                return None if mark == '"' else token.start()
            depth += (mark in "[{") - (mark in "]}")
        return None

    def broken_error(self, message: str, position: int) -> UserError:
        line = self.lines_before + self.text.count("\n", 0, position) + 1
        return UserError(f"{self.file}: line {line}: {message}. Mend the array, or write one JSON object a line.")
