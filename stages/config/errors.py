"""What a user can mend is told in one line, without a traceback."""

import difflib
import errno
import os
from collections.abc import Iterable, Iterator

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How libraries say so that swallow the number: safetensors and Arrow in the system's words, torch in its own.
IN_WORDS = (*map(os.strerror, FULL), "PytorchStreamWriter failed writing")


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
        numbered = isinstance(e, OSError) and e.errno in FULL
        said = next((words for words in IN_WORDS if words in str(e)), None)
        if numbered or said:
            what = e.strerror if numbered and isinstance(e, OSError) else said
            place = f"{e.filename}: " if isinstance(e, OSError) and e.filename else ""
            return (
                f"{place}{what}: the disk is full, or a quota is spent. Nothing is lost: make room, and the same "
                "command resumes; outputs=FOLDER puts the store elsewhere."
            )
    return None
