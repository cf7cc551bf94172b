"""What a user can mend is told in one line, without a traceback."""

import difflib
import re
from collections.abc import Iterable

# What moves a terminal's cursor, colours it or turns the direction of its text, and half a surrogate pair, which
# cannot be printed at all.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, keep: str = "") -> str:
    """Text from outside (a column's name, a file's, a model's answer) as a terminal may show it: control characters
    escaped, but for those to keep."""
    return UNSEEN.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


class UserError(Exception):
    """Something the user can mend: says in one line what is wrong, where, and the way out."""

    def __init__(self, message: object = ""):
        super().__init__(visible(str(message)))


def nearest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'beta'?"`, or the known names where none is near."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def one_of(key: str, values: Iterable[str], known: Iterable[str]) -> None:
    for value in values:
        if value not in known:
            raise UserError(f"{key}={value} is unknown.{nearest(value, known)}")
