"""Rows of a JSON array, however long: the file is read a piece at a time, and a row at a time is held of it."""

import codecs
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stages.config.errors import UserError
from stages.formats.readers.json_lines import DECODER, BoundedLines, json_message, not_utf8, value_of
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
    text = Text(file, stream)
    text.expect("[")
    if text.sees("]"):
        mark = text.expect("]")
    else:
        place, mark = 0, ","
        while mark == ",":
            place += 1
            yield text.row(place)
            mark = text.expect(",]")
    if text.sees(""):
        raise text.broken("Extra data", text.at)


class Text:
    """The piece of a file's text that is being read. `at` is where in it, `before` how many lines came before it."""

    def __init__(self, file: Path, stream: BoundedLines):
        self.file, self.stream, self.decoder = file, stream, codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.before, self.ended = "", 0, 0, False

    def more(self) -> bool:
        """Drop what has been read, and add a piece; as much as is there where that is more. False at the end."""
        if self.ended:
            return False
        self.before += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :], 0
        self.stream.refuse_longer(len(self.text))
        piece = self.stream.read(max(PIECE, len(self.text)))
        self.ended = not piece
        try:
            self.text += self.decoder.decode(piece, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.before + self.text.count("\n") + error.object.count(b"\n", 0, error.start) + 1
            raise UserError(f"{self.file}: line {line}: {not_utf8(self.file, error.object)}.") from error
        return True

    def sees(self, mark: str) -> bool:
        """Whether the next sign that is no space is this one, or with an empty mark any. At the end there is none."""
        while (at := SPACE.match(self.text, self.at).end()) == len(self.text):  # type: ignore[union-attr]
            self.at = at
            if not self.more():
                return False
        self.at = at
        return self.text.startswith(mark, at)

    def expect(self, marks: str) -> str:
        """Go past the next sign, which must be one of these."""
        if not self.sees("") or self.text[self.at] not in marks:
            raise self.broken("Expecting ',' delimiter", self.at)
        self.at += 1
        return self.text[self.at - 1]

    def row(self, place: int) -> Row:
        """The next row. One that is cut off at the end of the piece is read again with more of it: where that is may
        not show, since half a number is one."""
        self.sees("")
        while True:
            try:
                value, end = value_of(self.text, partial(DECODER.raw_decode, idx=self.at))
                found = Row(str(self.file), place, value)
            except json.JSONDecodeError as error:
                if self.end() is None and self.more():
                    continue
                raise self.broken(json_message(error), error.pos) from error
            except BadRow as reason:
                end = self.end() or len(self.text)
                found = Row(str(self.file), place, self.text[self.at : end].strip(), reason)
            if MARK.match(self.text, end) or self.end() is not None or not self.more():
                self.at = end
                return found

    def end(self) -> int | None:
        """Where the next row ends, whatever is in it; None where that is not in this piece."""
        depth = 0
        for token in TOKEN.finditer(self.text, self.at):
            mark = token[0]
            if mark == '"' or (depth == 0 and mark in ",]"):
                return None if mark == '"' else token.start()
            depth += (mark in "[{") - (mark in "]}")
        return None

    def broken(self, message: str, at: int) -> UserError:
        line = self.before + self.text.count("\n", 0, at) + 1
        return UserError(f"{self.file}: line {line}: {message}. Mend the array, or use one JSON object a line.")
