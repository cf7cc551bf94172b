"""Read JSON lines, none longer than data.max_line allows, since a line may be as long as its file.

A row is unusable if it has a key twice, or a number of a million digits."""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.formats.readers.row import BadRow, Row, first_repeated

MEGABYTE = 1_000_000
COMMENT = re.compile(r"\s*(//|/\*|#)")
BLANK = b"\xef\xbb\xbf \t\r\n"  # the byte order mark and white space


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
        """Raise UserError if a line, or a value of a JSON array, is longer than the limit."""
        if length > self.longest:
            raise UserError(
                f"{self.file}: a line has more than {self.most} MB. Type data.max_line=MB to allow more."
            )

    def text_lines(self, text: io.TextIOWrapper) -> Iterator[str]:
        """Yield the lines of a text decoded from this stream; the limit counts characters here."""
        while line := text.readline(self.longest + 1):
            self.refuse_longer(len(line))
            yield line


def line_rows(file: Path, lines: Iterable[bytes]) -> Iterator[Row]:
    """Yield the rows of JSON lines. Only \\n ends a line: U+2028 may occur inside a string."""
    name = str(file)
    for i, line in enumerate(lines, 1):
        if not line.strip(BLANK):
            continue
        try:
            text = line.decode("utf-8-sig" if i == 1 else "utf-8").rstrip("\n")
            yield Row(name, i, parse_value(text))
        except UnicodeDecodeError:
            yield Row(
                name, i, line.decode(errors="replace").rstrip("\n"), not_utf8_error(file, line)
            )
        except json.JSONDecodeError as error:
            # an array without its brackets
            if error.msg == "Extra data" and error.doc[error.pos :].strip() == ",":
                yield Row(name, i, parse_value(error.doc[: error.pos]))
            else:
                yield Row(name, i, text, BadRow("", f"broken JSON: {json_message(error)}"))
        except BadRow as reason:
            yield Row(name, i, text, reason)


def json_message(error: json.JSONDecodeError) -> str:
    """Return the error of a JSON text; for a comment, also the command that removes it."""
    if not COMMENT.match(error.doc, error.pos):
        return error.msg
    return (
        "a comment, which JSON does not allow. Remove lines with comments: sed -E 's,^ *(//|#).*,,'"
    )


def decode_text(file: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}: line {line}: {not_utf8_error(file, content)}.") from error


def not_utf8_error(file: Path, content: bytes) -> BadRow:
    """Return the error for bytes that are not UTF-8, with the command that converts likely Windows-1252."""
    try:
        likely = not re.search(r"[\x00-\x08\x0e-\x1f]", content.decode("cp1252"))
    except UnicodeDecodeError:
        likely = False
    way_out = (
        f", but maybe Windows-1252: iconv -f CP1252 -t UTF-8 {file} > {file.stem}.utf8{file.suffix}"
    )
    return BadRow("", f"not UTF-8{way_out if likely else ''}")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    items = dict(pairs)
    if len(items) < len(pairs):
        raise BadRow(
            str(first_repeated([key for key, _ in pairs])), "broken JSON: the key occurs twice"
        )
    return items


def refuse_constant(name: str) -> None:
    raise BadRow(
        "",
        f"broken JSON: {name} is not a number. Write null: sed -E 's/([:,[] *){name}\\b/\\1null/g'",
    )


DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=refuse_constant)


def parse_value(text: str, decode: Callable[[str], Any] = DECODER.decode) -> Any:
    """Return the value of a JSON text, read by `decode`.
    Raise JSONDecodeError if the text is not JSON. BadRow: for deep nesting, NaN, a key twice or too many digits."""
    try:
        return decode(text)
    except RecursionError:
        raise BadRow("", "broken JSON: nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python refuses integers of more than some thousand digits
        raise BadRow("", "broken JSON: a number with too many digits") from None
