"""Errors that the user can correct. They end the command with one line and without a traceback."""

import difflib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
BROKEN = (
    errno.EIO,
    errno.ESTALE,
    errno.EREMOTEIO,
    errno.ENODEV,
    errno.ENXIO,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.ETIMEDOUT,
    errno.EUCLEAN,
    errno.EBADMSG,
)
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY)
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
# What mends an error of the file system, by its number
WAYS_OUT = {
    **dict.fromkeys(READ_ONLY, "Give this user the right to it, or set outputs=FOLDER"),
    **dict.fromkeys(
        BROKEN,
        "The disk or the mount fails. Check it or mount it again, and type the same command again; or set outputs=FOLDER",
    ),
    **dict.fromkeys(
        UNSUPPORTED,
        "This file system cannot do what a store needs. Mount it with locks, or set outputs=FOLDER on another one",
    ),
    **dict.fromkeys(IN_THE_WAY, "Move away what stands there, or set outputs=FOLDER"),
    **dict.fromkeys(TOO_MANY_FILES, "Allow more open files, as by: ulimit -n 8192"),
    errno.ENAMETOOLONG: "Shorten the name, or set outputs=FOLDER with a shorter path",
    errno.ELOOP: "A link leads back to itself. Remove the link",
}
# Errors that come from files alone, so that they need no name of a file
OF_FILES_ALONE = (errno.EIO, errno.ESTALE, errno.EROFS, errno.ENOLCK, *TOO_MANY_FILES)
# Words of the system, and of torch, in errors without a number: some libraries lose it
FULL_DISK_WORDS = [
    *map(os.strerror, FULL_DISK),
    "basic_ios::clear: iostream error",
    "PytorchStreamWriter failed writing",
    "inline_container.cc",
]

# Characters that hide a text or change how another one reads: controls, which also move a terminal's cursor; marks that
# turn the direction of text; characters without width; blanks other than spaces; fillers, tags, private code points and
# half a surrogate pair. A joiner between two characters outside ASCII is visible by its effect, in an emoji or a word of
# an Arabic or Indic script. So is one U+FE0F behind such a character or in a keycap.
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u2800\u3164\ud800-\uf8ff\ufe00-\ufe0e\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U00013430-\U00013455\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff\U000f0000-\U0010ffff]"
    "|(?<![^\x00-\x7f\ufe0f])\ufe0f(?!\u20e3)"
    "|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)


def visible(text: str, keep: str = "") -> str:
    """Return a text with escapes for its invisible characters, except those in `keep`."""
    return UNSEEN.sub(
        lambda unseen: unseen[0] if unseen[0] in keep else ascii(unseen[0])[1:-1], text
    )


def shortened(text: str, most: int) -> str:
    """Return a text, cut behind so many characters."""
    return text if len(text) <= most else f"{text[:most]}…"


class UserError(Exception):
    """An error that the user can correct. Its one line says what is wrong, where, and what to type."""

    def __init__(self, message: object = "", *of_further_errors: str):
        """Join the messages of this error and of further ones in one line."""
        self.messages = [visible(str(each)) for each in (message, *of_further_errors)]
        super().__init__(" Also: ".join(self.messages))


class LimitReached(Exception):
    """The end of a command at a limit of `limits`. Its one line says which limit, and where the command stopped."""

    def __init__(self, message: str, setting: str):
        """`setting`: the limit to type instead, so that the same command goes on."""
        super().__init__(message)
        self.setting = setting


@contextmanager
def begin_errors(beginning: str) -> Iterator[None]:
    """Begin the messages of UserErrors that are raised inside with the argument or the file that they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{beginning}: {error}") from error


class Errors:
    """A collector of UserErrors. `with errors:` stores an error's messages, and `raise_all` raises them together."""

    def __init__(self) -> None:
        self.messages = dict[str, None]()  # a dict, since it keeps the order and each message once

    def __enter__(self) -> None:
        """Do nothing at the start of a block."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Store the messages of a UserError. Any other error continues to the caller."""
        if isinstance(error, UserError):
            self.messages |= dict.fromkeys(error.messages)
            return True
        return False  # the error continues

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


# The names here of settings that other tools call otherwise
SYNONYMS = {
    "lr": "learning_rate",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "batch_size",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_steps": "epochs",
    "max_seq_length": "max_length",
    "max_tokens": "max_new_tokens",
    "temperature": "temperatures",
    "n": "candidates_per_prompt",
    "loss": "loss_type",
    "eval_steps": "evaluations",
    "activation_checkpointing": "gradient_checkpointing",
    "bf16": "precision",
    "fp16": "precision",
    "tf32": "precision",
    "gpus": "processes",
    "output_dir": "outputs",
    "wandb_project": "project",
}


MOST_NAMES = 25  # that one line lists


def suggest(name: str, names: Iterable[str]) -> str:
    """Return the question if the synonym of `name` or the nearest name was meant. If none is near, return a list of all
    names, or of the ten nearest of many; nothing if there are none."""
    names = sorted(map(str, names))
    if not names:
        return ""
    if SYNONYMS.get(name) in names:
        return f" Did you mean {SYNONYMS[name]!r}?"
    near = nearest(name, names)
    if near:
        return f" Did you mean {near!r}?"
    if len(names) > MOST_NAMES:
        ten = difflib.get_close_matches(name, names, n=10, cutoff=0)
        return f" The ten nearest of {len(names)}: {', '.join(ten)}."
    return f" Known: {', '.join(names)}."


def nearest(name: str, names: Sequence[str], least_similarity: float = 0.5) -> str | None:
    """Return a name that continues `name` after an underscore, else the most similar one; None if none is similar."""
    for longer_name in names:
        if name and longer_name.startswith(f"{name}_"):
            return longer_name
    for most_similar in difflib.get_close_matches(name, names, n=1, cutoff=least_similarity):
        return most_similar
    return None


def require_known(key: str, values: Iterable[str], names: Iterable[str]) -> None:
    for value in values:
        if value not in names:
            raise UserError(f"{key}={value}: {value} is not a known value.{suggest(value, names)}")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def full_disk_message(error: BaseException) -> str | None:
    """Return the message for an error that a full disk or a used-up quota caused; None for another error."""
    for cause in causes(error):
        text = str(cause)
        is_full = isinstance(cause, OSError) and cause.errno in FULL_DISK
        if is_full or any(words in text for words in FULL_DISK_WORDS):
            return (
                f"{text}: the disk is full, or a quota is used up. No finished work is lost. Free some space, and type "
                "the same command again. For another disk, set outputs=FOLDER."
            )
    return None


def file_error_message(error: BaseException, store: str = "") -> str | None:
    """Return the message for an error of the file system, with the file and the way out; None for another error, or
    for one that may be a bug. Any error at a file inside the folder `store` has a message."""
    if not isinstance(error, OSError):
        return None
    file = "" if error.filename is None else os.fsdecode(error.filename)
    in_store = bool(store and file) and Path(file).absolute().is_relative_to(Path(store).absolute())
    way_out = WAYS_OUT.get(error.errno or 0, "")
    if in_store and not way_out:
        way_out = "Type the same command again, or set outputs=FOLDER"
    if not way_out or not (file or error.errno in OF_FILES_ALONE):
        return None
    place = file or store or "a file of the store"
    return f"{place}: {error.strerror}. {way_out}. No finished work is lost."


def storage_message(error: BaseException, store: str = "") -> str | None:
    """Return the line for a full disk, or for another error at a file that the user can mend; None for a bug. `store`: as
    in `file_error_message`."""
    return full_disk_message(error) or file_error_message(error, store)


@contextmanager
def name_file(file: object) -> Iterator[None]:
    """Name a file in an error of the file system that names none, as those of open files."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(file)
        raise
