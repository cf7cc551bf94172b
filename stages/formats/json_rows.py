"""Rows of JSON lines, and what they hold that no program should have to."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.formats.row import BadRow, Row


def line_rows(file: Path, lines: Iterable[bytes]) -> Iterator[Row]:
    """JSON lines. Only \\n ends a line: U+2028 may stand inside a string."""
    name = str(file)
    for i, line in enumerate(lines, 1):
        if not line.strip(b"\xef\xbb\xbf \t\r\n"):
            continue
        try:
            text = line.decode("utf-8-sig" if i == 1 else "utf-8").rstrip("\n")
        except UnicodeDecodeError:
            yield Row(name, i, line.decode(errors="replace").rstrip("\n"), not_utf8(file, line))
            continue
        try:
            yield Row(name, i, value_of(text))
        except json.JSONDecodeError as error:
            yield Row(name, i, text, BadRow("", f"broken JSON: {error.msg}"))
        except BadRow as reason:
            yield Row(name, i, text, reason)


def refuse_object(file: Path, content: bytes) -> None:
    """Raise UserError for a file that is one JSON object over several lines: it has no rows."""
    try:
        value = value_of(decoded(file, content))
    except (json.JSONDecodeError, BadRow):
        return
    keys = [str(key) for key in value] if isinstance(value, dict) else []
    rows = next((key for key in keys if isinstance(value[key], list)), "")
    raise UserError(
        f"{file}: one JSON object with the keys {', '.join(keys[:9])}, and no rows. Write one object a line: "
        f"jq -c '.{rows}[]' {file.name} > rows.jsonl"
    )


def decoded(file: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}: line {line}: {not_utf8(file, content)}.") from error


def not_utf8(file: Path, content: bytes) -> BadRow:
    """That bytes are no UTF-8, and the way to make them so where they are likely Windows-1252: no control character
    stands among its letters."""
    try:
        likely = not re.search(r"[\x00-\x08\x0e-\x1f]", content.decode("cp1252"))
    except UnicodeDecodeError:
        likely = False
    way_out = f", but maybe Windows-1252: iconv -f CP1252 -t UTF-8 {file.name} > {file.stem}.utf8{file.suffix}"
    return BadRow("", f"not UTF-8{way_out if likely else ''}")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadRow(str(repeated([key for key, _ in pairs])), "broken JSON: the key stands there twice")
    return found


def no_number(name: str) -> None:
    raise BadRow("", f"broken JSON: {name} is no number")


SPACE = " \t\r\n"
DECODER = json.JSONDecoder(object_pairs_hook=unique, parse_constant=no_number)


def whole(text: str) -> Any:
    """As the decoder's `decode`, which looks for white space with a regular expression, before and after."""
    value, end = DECODER.raw_decode(text := text.lstrip(SPACE))
    if text[end:].strip(SPACE):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def value_of(text: str, decode: Callable[[str], Any] = whole) -> Any:
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


def repeated(names: list[str]) -> str | None:
    return next((name for i, name in enumerate(names) if name in names[:i]), None)
