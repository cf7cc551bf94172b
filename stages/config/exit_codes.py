"""The exit codes of commands, and what each means."""

from enum import IntEnum

from stages.config.extras import recorded


class ExitCode(IntEnum):
    """The exit codes of every command except `stage=gate`."""

    done = 0
    failed = 1
    unknown_option = 2
    stopped = 4


class GateCode(IntEnum):
    """The exit codes of `stage=gate`."""

    passes = 0
    worse = 1
    other_prompts = 2
    cannot_tell = 3


# By code: of every command except gate, and of gate. Extras add further meanings
MEANINGS = {
    0: ("finished", "not worse"),
    1: (
        "an error, a refusal, an interrupt, a failed job of a sweep, finished work that store.remote did not get",
        "worse",
    ),
    2: ("an option that does not exist", "not comparable, or an error"),
    3: ("", "too few prompts to tell"),
    4: ("stopped at limits.minutes or limits.money: the same command resumes", ""),
}


def meanings() -> dict[int, tuple[str, str]]:
    """Return by code what it means: of every command except gate, with the meanings that extras add, and of gate."""
    by_code = dict(MEANINGS)
    for further in recorded("EXIT_CODES").values():
        for code, meaning in further.items():
            of_commands, of_gate = by_code[code]
            by_code[code] = (f"{of_commands}, {meaning}", of_gate)
    return by_code


def exit_code(error: BaseException) -> int:
    """Return the exit code of a process that ends with this error: a SystemExit's number, done if it has none, else
    failed."""
    if not isinstance(error, SystemExit):
        return ExitCode.failed
    number_or_message = error.code
    if number_or_message is None:
        return ExitCode.done
    return number_or_message if isinstance(number_or_message, int) else ExitCode.failed
