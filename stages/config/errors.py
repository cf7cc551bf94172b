"""What a user can mend is told in one line, without a traceback."""

import difflib
import errno
import os
from collections.abc import Iterable, Iterator

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How libraries that swallow the number say so: safetensors and tokenizers in the system's words, torch in its own.
IN_WORDS = {words: words for words in map(os.strerror, FULL)}
TORCH = ("basic_ios::clear: iostream error", "PytorchStreamWriter failed writing", "inline_container.cc")
IN_WORDS |= dict.fromkeys(TORCH, "torch could not write a file")


class UserError(Exception):
    """Something the user can mend: says what is wrong, where, and the way out."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'beta'?"`, or the known names where none is near."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def one_of(key: str, values: Iterable[str], known: Iterable[str]) -> None:
    for value in values:
        if value not in known:
            raise UserError(f"{key}={value} is unknown.{nearest(value, known)}")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def full_disk(error: BaseException) -> str | None:
    """One line where an error, or what it came from, is that a disk is full, a quota spent or a file too large."""
    for e in causes(error):
        number = e.errno if isinstance(e, OSError) and e.errno in FULL else None
        said = (
            os.strerror(number)
            if number
            else next((told for words, told in IN_WORDS.items() if words in str(e)), None)
        )
        if said:
            place = f"{e.filename}: " if isinstance(e, OSError) and e.filename else ""
            return (
                f"{place}{said}: the disk is full, or a quota is spent. Nothing is lost: make room, and the same "
                "command resumes; outputs=FOLDER puts the store elsewhere."
            )
    return None
