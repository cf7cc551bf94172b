"""Rows of a JSON array, however long: the file is read a piece at a time, and a row at a time is held of it."""

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
    """The rows of a JSON array.

    Raises:
        UserError: for one that is broken, where it is: what follows has no rows that could be told apart.
    """
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
    """The piece of a file's text that is being read. `at` is where in it, `before` how many lines came before it."""

    def __init__(self, file: Path, stream: BoundedLines):
        self.file, self.stream, self.decoder = file, stream, codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.position, self.lines_before, self.ended = "", 0, 0, False

    def read_piece(self) -> bool:
        """Drop what has been read, and add a piece; as much as is there where that is more. False at the end."""
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
        """Whether the next sign that is no space is this one, or with an empty mark any. At the end there is none."""
        while (at := SPACE.match(self.text, self.position).end()) == len(self.text):  # type: ignore[union-attr]
            self.position = at
            if not self.read_piece():
                return False
        self.position = at
        return self.text.startswith(mark, at)

    def expect(self, marks: str) -> str:
        """Go past the next sign, which must be one of these."""
        if not self.next_is("") or self.text[self.position] not in marks:
            raise self.broken_error("Expecting ',' delimiter", self.position)
        self.position += 1
        return self.text[self.position - 1]

    def next_row(self, number: int) -> Row:
        """The next row. One that is cut off at the end of the piece is read again with more of it: where that is may
        not show, since half a number is one."""
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
        """Where the next row ends, whatever is in it; None where that is not in this piece."""
        depth = 0
        for token in TOKEN.finditer(self.text, self.position):
            mark = token[0]
            if mark == '"' or (depth == 0 and mark in ",]"):
                return None if mark == '"' else token.start()
            depth += (mark in "[{") - (mark in "]}")
        return None

    def broken_error(self, message: str, position: int) -> UserError:
        line = self.lines_before + self.text.count("\n", 0, position) + 1
        return UserError(f"{self.file}: line {line}: {message}. Mend the array, or use one JSON object a line.")
