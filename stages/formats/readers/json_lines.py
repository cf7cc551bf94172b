"""Lines of a file, none longer than a key allows, and the rows of JSON lines.

A line may be as long as the file, and memory is not. What no program should have to hold, such as a key twice or a
number of a million digits, makes a row unusable.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.formats.readers.row import BadRow, Row, first_repeated

MEGABYTE = 1_000_000
SPACE = " \t\r\n"
COMMENT = re.compile(r"\s*(//|/\*|#)")
BLANK = b"\xef\xbb\xbf" + SPACE.encode()  # bytes that say nothing: a mark of byte order, and white space


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


def line_rows(file: Path, lines: Iterable[bytes]) -> Iterator[Row]:
    """JSON lines. Only \\n ends a line: U+2028 may stand inside a string."""
    name = str(file)
    for i, line in enumerate(lines, 1):
        if not line.strip(BLANK):
            continue
        try:
            text = line.decode("utf-8-sig" if i == 1 else "utf-8").rstrip("\n")
        except UnicodeDecodeError:
            yield Row(name, i, line.decode(errors="replace").rstrip("\n"), not_utf8_error(file, line))
            continue
        try:
            yield Row(name, i, parse_value(text))
        except json.JSONDecodeError as error:
            yield broken_row(file, i, text, error)
        except BadRow as reason:
            yield Row(name, i, text, reason)


def broken_row(file: Path, line: int, text: str, error: json.JSONDecodeError) -> Row:
    """A line that is no JSON, but for a comma after it: of an array without its brackets."""
    if error.msg == "Extra data" and error.doc[error.pos :].strip() == ",":
        return Row(str(file), line, parse_value(error.doc[: error.pos]))
    return Row(str(file), line, text, BadRow("", f"broken JSON: {json_message(error)}"))


def json_message(error: json.JSONDecodeError) -> str:
    """Return what is wrong with a JSON text; of a comment, which many programs write into JSON, how it goes."""
    if not COMMENT.match(error.doc, error.pos):
        return error.msg
    return "a comment, which JSON does not have. Take comments out: sed -E 's,^ *(//|#).*,,' removes lines of them"


def decode_text(file: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}: line {line}: {not_utf8_error(file, content)}.") from error


def not_utf8_error(file: Path, content: bytes) -> BadRow:
    """That bytes are no UTF-8, and the way to make them so where they are likely Windows-1252: no control character
    stands among its letters."""
    try:
        likely = not re.search(r"[\x00-\x08\x0e-\x1f]", content.decode("cp1252"))
    except UnicodeDecodeError:
        likely = False
    way_out = f", but maybe Windows-1252: iconv -f CP1252 -t UTF-8 {file.name} > {file.stem}.utf8{file.suffix}"
    return BadRow("", f"not UTF-8{way_out if likely else ''}")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    items = dict(pairs)
    if len(items) < len(pairs):
        raise BadRow(str(first_repeated([key for key, _ in pairs])), "broken JSON: the key stands there twice")
    return items


def refuse_constant(name: str) -> None:
    raise BadRow("", f"broken JSON: {name} is no number: sed 's/: *{name}\\b/: null/g' writes null for it")


DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=refuse_constant)


def decode_whole(text: str) -> Any:
    """As the decoder's `decode`, which looks for white space with a regular expression, before and after."""
    value, end = DECODER.raw_decode(text := text.lstrip(SPACE))
    if text[end:].strip(SPACE):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def parse_value(text: str, decode: Callable[[str], Any] = decode_whole) -> Any:
    """The value of a JSON text, or what `decode` makes of it.

    Raises:
        JSONDecodeError: where it is none.
        BadRow: where it is one that cannot be held: nested too deeply, a number that is too long or none, a key twice.
    """
    try:
        return decode(text)
    except RecursionError:
        raise BadRow("", "broken JSON: nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python reads no integer of more than some thousand digits
        raise BadRow("", "broken JSON: a number with too many digits") from None
