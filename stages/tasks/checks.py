"""Checks of an answer, stored as data. They need no judge."""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from stages.store.records import Check
from stages.store.thoughts import answer_behind
from stages.tasks import constraint, stances
from stages.tasks.equivalence import are_equal, is_expression
from stages.tasks.final_numbers import last_number, sole_number
from stages.tasks.open_requests import is_echo, on_topic


def words(text: str) -> list[str]:
    return re.findall(r"[\w'’-]+", text)


def parse_json(text: str) -> Any:
    """Return the JSON value of an answer. For invalid JSON, return the class ValueError, which equals none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return ValueError


# The checks of the short tasks. Each gets an answer without outer white space.
CHECKS: dict[str, Callable[..., bool]] = {
    "equals": lambda answer, text: answer == text,
    "one_of": lambda answer, options: answer in options,
    "upper": str.isupper,
    "lower": str.islower,
    "capitalised": lambda answer: (
        bool(answer) and all(w[0].isupper() and w[1:] == w[1:].lower() for w in answer.split())
    ),
    "contains": lambda answer, text: text in answer,
    "lacks": lambda answer, text: text not in answer,
    "starts_with": lambda answer, text: answer.startswith(text),
    "ends_with": lambda answer, text: answer.endswith(text),
    "same_words": lambda answer, words: sorted(re.findall(r"\w+", answer)) == sorted(words),
    "word_count": lambda answer, count: len(answer.split()) == count,
    "line_count": lambda answer, count: len(answer.split("\n")) == count,
    "comma_count": lambda answer, count: answer.count(",") == count and "\n" not in answer,
    "bullet_count": lambda answer, count: (
        len(answer.split("\n")) == count
        and all(line.startswith("- ") for line in answer.split("\n"))
    ),
    "label": lambda answer, text: (
        answer == text or words(answer.lower()) == words(text.lower()) != []
    ),
    "number": lambda answer, text: (
        last_number(answer) is not None and last_number(answer) == last_number(text)
    ),
    "math": are_equal,
    "is_json": lambda answer: parse_json(answer) is not ValueError,
    "json": lambda answer, value: parse_json(answer) == value,
}


# What a reference must be to be compared; what it is said to be if it is not.
COMPARABLE: dict[str, tuple[Callable[[str], bool], str]] = {
    "number": (
        lambda text: sole_number(text) is not None,
        "is not one number, which may stand behind ####",
    ),
    "math": (
        is_expression,
        "is not one expression, which may stand behind #### or in \\boxed{}",
    ),
}


def incomparable(check: str, reference: str) -> str:
    """Return why a check cannot compare answers with a reference; empty if it can."""
    is_comparable, problem = COMPARABLE.get(check, (lambda _: True, ""))
    return "" if is_comparable(reference) else f"the reference {reference!r:.60} {problem}"


@cache
def known_checks() -> dict[str, Callable[..., bool]]:
    """Return every check by its kind: those above, of stances, and of open answers, the constraints among them."""
    open_ended = {name: kind.is_satisfied for name, kind in constraint.known_constraints().items()}

    def own_words(answer: str, text: str) -> bool:
        return bool(answer) and not is_echo(answer, text)

    return {**CHECKS, **stances.CHECKS, **open_ended, "on_topic": on_topic, "own_words": own_words}


def share_passed(checks: list[Check], answer: str) -> float:
    """Return the share of checks passed by the answer behind any thought, in [0, 1]."""
    answer = answer_behind(answer).strip()
    return sum(known_checks()[check.kind](answer, **check.params) for check in checks) / len(checks)
