"""Is an answer equal to its reference as mathematics? math-verify tells, an extra: 0.75 is 3/4."""

import re
import threading
from typing import Any

from stages.tasks.final_numbers import result_of

SECONDS = 3  # that an expression may take, in the main thread, where it can be stopped
# A word that is no command of LaTeX, or a number with a space inside: such a text is no expression alone
PROSE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}|\d\s+\d")


def is_expression(text: str) -> bool:
    """Return whether a reference, or what it marks as its result, is one expression and nothing else."""
    result = result_of(text)
    return bool(result.strip()) and not PROSE.search(result) and bool(expression(result))


def expression(text: str) -> list[Any]:
    """Return the expression that a text is or marks as its result, else the last one in it, as math-verify reads it: a
    value and what is written. Empty if it has none."""
    from math_verify import parse

    result = result_of(text).strip().strip("$")
    is_alone = result != text.strip().strip("$") or not PROSE.search(result)
    parsed: list[Any] = parse(
        f"${result}$" if is_alone else text, parsing_timeout=limit(), raise_on_error=False
    )
    return parsed


def are_equal(answer: str, text: str) -> bool:
    """Return whether an answer has the value of the reference `text`."""
    from math_verify import verify

    gold, given = expression(text), expression(answer)
    equal: bool = verify(gold, given, timeout_seconds=limit(), raise_on_error=False)
    return bool(gold) and bool(given) and equal


def limit() -> int | None:
    """Return the seconds after which math-verify stops: by a signal, which only the main thread gets."""
    return SECONDS if threading.current_thread() is threading.main_thread() else None
