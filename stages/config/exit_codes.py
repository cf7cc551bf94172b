"""The exit codes of commands, and what each means."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every command except `stage=gate`."""

    done = 0
    failed = 1
    unknown_option = 2


class GateCode(IntEnum):
    """The exit codes of `stage=gate`."""

    passes = 0
    worse = 1
    other_prompts = 2
    cannot_tell = 3


# By code: of every command except gate, and of gate
MEANINGS = {
    0: ("finished", "not worse"),
    1: (
        "an error, a refusal, an interrupt, a failed job of a sweep, a fault with examine.strict",
        "worse",
    ),
    2: ("an option that does not exist", "not comparable, or an error"),
    3: ("", "too few prompts to tell"),
}


def exit_code(error: BaseException) -> int:
    """Return the exit code of a process that ends with this error. A SystemExit has a number, or the line of an error."""
    code = error.code if isinstance(error, SystemExit) else str(error)
    return code if isinstance(code, int) else ExitCode.done if code is None else ExitCode.failed
