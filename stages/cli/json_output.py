"""`--json`: one JSON object on stdout in place of text. Logs, and all that libraries print, go to stderr."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar

from stages.cli.explain import explain
from stages.cli.typed_line import TypedLine
from stages.commands.result import Reply, Result, null_for_nan
from stages.config.commands import COMMANDS
from stages.config.errors import UserError
from stages.config.exit_codes import exit_code
from stages.config.stage_table import Target

FLAG = "--json"
# the reply that this command fills; None without --json
json_reply: ContextVar[Reply | None] = ContextVar("json_reply", default=None)


@contextmanager
def replying(line: TypedLine) -> Iterator[None]:
    """Write the reply of the command line when the block ends, however it ends."""
    reply = Reply(line.values.get("stage", str(Target.report)))
    token = json_reply.set(reply)
    try:
        with stdout_to_stderr():
            yield
    except BaseException as error:
        reply.exit_code = exit_code(error)
        if reply.exit_code:
            reply.error = error_text(error)
            if not (reply.error or reply.result):
                reply.error = "The reason is on stderr."
        raise
    finally:
        json_reply.reset(token)
        sys.stdout.write(f"{json.dumps(null_for_nan(reply.as_plain()), ensure_ascii=False)}\n")
        sys.stdout.flush()


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what this process, its children and its libraries write to stdout."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def error_text(error: BaseException) -> str | None:
    """Return the line of an error without `error: `, or None for an exit code alone, which is a result."""
    reason: BaseException | None = error
    if isinstance(error, SystemExit):
        if isinstance(error.code, str):
            return error.code.removeprefix("error: ")
        reason = (
            error.__context__
        )  # Hydra and stage=gate exit with a number because of another error
    if reason is None:
        return None  # the exit code is a result
    return explain(reason) or f"{type(reason).__name__}: {reason}"


def require_result(stage: str) -> None:
    """Raise UserError if `--json` is typed for a command that has no result."""
    has_result = stage not in COMMANDS or COMMANDS[stage].prints_json
    if json_reply.get() and not has_result:
        raise UserError(f"stage={stage} has no JSON. Leave {FLAG} out.")


def refuse_json_of_sweep() -> None:
    """Raise UserError if `--json` is typed for a sweep, which has several jobs."""
    if json_reply.get():
        ways_out = ["Leave it out"]
        for name, command in COMMANDS.items():
            if command.key_of_sweep and command.prints_json:
                ways_out.append(f"then type stage={name} {command.key_of_sweep}=FOLDER {FLAG}")
        problem = f"{FLAG} is for one run, and a sweep has several jobs"
        raise UserError(f"{problem}. {', '.join(ways_out)}.")


def deliver(result: Result) -> None:
    """Print a result as text, or keep it for `--json`. Then end the command as the result says."""
    reply = json_reply.get()
    if reply:
        reply.result = result
    else:
        result.show()
    result.end_with_exit_code()
