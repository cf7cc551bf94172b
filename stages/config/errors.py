"""Errors that the user can correct. They end the command with one line and without a traceback."""

import difflib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from stages.config.installation import read_beside

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
# Some libraries lose the error's number. safetensors and tokenizers keep the system's words; torch has its own words.
IN_WORDS = {words: words for words in map(os.strerror, FULL)}
TORCH = (
    "basic_ios::clear: iostream error",
    "PytorchStreamWriter failed writing",
    "inline_container.cc",
)
IN_WORDS |= dict.fromkeys(TORCH, "torch could not write a file")

TEXTS = read_beside(__file__)
PARTS = {name: "".join(parts) for name, parts in TEXTS["unseen"].items()}
UNSEEN = re.compile(PARTS["pattern"].format(**PARTS))  # invisible characters


def visible(text: str, keep: str = "") -> str:
    """Return a text from outside (a file's name, a model's answer) with escapes for invisible characters, so that a
    terminal or a page can show it. Characters in `keep` stay."""
    return UNSEEN.sub(lambda match: match[0] if match[0] in keep else ascii(match[0])[1:-1], text)


class UserError(Exception):
    """An error that the user can correct. Its one line says what is wrong, where, and what to type."""

    def __init__(self, message: object = "", *more: str):
        """`more` are messages of further errors, which stand in the same line."""
        self.messages = [visible(str(text)) for text in (message, *more)]
        super().__init__(" Also: ".join(self.messages))


@contextmanager
def name_block(block: str) -> Iterator[None]:
    """Replace `label.` by `block.` in errors raised inside: `eval.judged` has the keys of `label`, and so has
    `label.judge`, the judge of an ensemble."""
    try:
        yield
    except UserError as error:
        group = "eval/judged" if block.startswith("eval.judged") else "label"
        messages = [re.sub(r"\blabel\.", f"{block}.", each) for each in error.messages]
        raise UserError(*(re.sub(r"\blabel=", f"{group}=", each) for each in messages)) from error


class Errors:
    """A collector of UserErrors. `with errors:` stores an error's messages, and `raise_all` raises them together."""

    def __init__(self) -> None:
        self.messages = dict[str, None]()  # a dict, since it keeps the order and each message once

    def __enter__(self) -> None:
        """Start a block that may raise a UserError."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Store the messages of a UserError. Any other error continues to the caller."""
        if isinstance(error, UserError):
            self.messages |= dict.fromkeys(error.messages)
        return isinstance(error, UserError)

    def add(self, message: str) -> None:
        """Store one more message."""
        self.messages[message] = None

    def raise_all(self) -> None:
        """Raise one UserError with all stored messages, if there are any."""
        if self.messages:
            raise UserError(*self.messages)


def check_all(checks: Iterable[Callable[[], object]]) -> None:
    """Call all checks, and raise one UserError with the messages of those that raise one."""
    errors = Errors()
    for check in checks:
        with errors:
            check()
    errors.raise_all()


# Names that other tools give to settings, and the names here.
SYNONYMS = {alias: name for name, aliases in TEXTS["synonyms"].items() for alias in aliases.split()}


def suggest(name: str, names: Iterable[str]) -> str:
    """Return `" Did you mean 'beta'?"` with the name nearest to `name`, or a list of all names if none is near."""
    names = sorted(map(str, names))
    if SYNONYMS.get(name) in names:
        return f" Did you mean {SYNONYMS[name]!r}?"
    near = nearest(name, names)
    return f" Did you mean {near!r}?" if near else f" Known: {', '.join(names)}."


def nearest(name: str, names: Sequence[str], similarity: float = 0.5) -> str | None:
    """Return the name most like `name`, or None if none has this similarity, from 0 to 1."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=similarity)
    return next(
        (each for each in names if name and each.startswith(f"{name}_")), next(iter(close), None)
    )


def require_known(key: str, values: Iterable[str], names: Iterable[str]) -> None:
    for value in values:
        if value not in names:
            raise UserError(f"{key}={value}: {value} is not a known value.{suggest(value, names)}")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def full_disk_message(error: BaseException) -> str | None:
    """Return the message for a full disk, a spent quota or a file that is too large. Return None for another error."""
    for e in causes(error):
        number = e.errno if isinstance(e, OSError) and e.errno in FULL else None
        in_words = next((phrase for words, phrase in IN_WORDS.items() if words in str(e)), None)
        reason = os.strerror(number) if number else in_words
        if reason:
            place = f"{e.filename}: " if isinstance(e, OSError) and e.filename else ""
            return f"{place}{reason}: {TEXTS['full disk']}"
    return None
