"""What a user can mend is told in one line, without a traceback."""

import difflib
from collections.abc import Iterable


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
