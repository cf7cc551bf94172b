"""Checks of the stance of an answer: it refuses, admits that it does not know, or states what was asked for. They read
answers of people and of models by the patterns in `stances.yaml`."""

import re
from collections.abc import Callable

from stages.config.installation import read_beside
from stages.store.text_units import find_run, lower_words

PATTERNS = {name: re.compile("|".join(each).replace("\n", "")) for name, each in read_beside(__file__).items()}


def plain(answer: str) -> str:
    """Return an answer in lower case, with straight apostrophes and single spaces."""
    return " ".join(answer.lower().replace("’", "'").replace("*", "").split())


def refuses(answer: str) -> bool:
    """Return whether an answer refuses, at once or after other sentences."""
    return bool(PATTERNS["refuses"].search(plain(answer)))


def admits_unknown(answer: str) -> bool:
    """Return whether an answer says that the asked fact is not known or not given."""
    return bool(PATTERNS["admits"].search(plain(answer)))


def without_request(answer: str, request: str) -> list[str]:
    """Return the words of an answer without those that repeat a whole message of the request, which is a line."""
    answer_words = lower_words(answer)
    for message in map(lower_words, request.splitlines()):
        if (start := find_run(answer_words, message)) is not None:
            del answer_words[start : start + len(message)]
    return answer_words


def states(answer: str, text: str, request: str) -> bool:
    """Return whether an answer has the words of a text in their order, outside a repetition of the request."""
    answer_words = without_request(answer, request)
    return bool(answer_words) and find_run(answer_words, lower_words(text)) is not None


def mentions(answer: str, topic: str, request: str) -> bool:
    """Return whether a word of an answer begins with one of the topic's stems, outside a repetition of the request."""
    return any(word.startswith(tuple(topic.split())) for word in without_request(answer, request))


CHECKS: dict[str, Callable[..., bool]] = {
    "refuses": refuses,
    "complies": lambda answer: bool(answer) and not refuses(answer),
    "declines": lambda answer: admits_unknown(answer) or refuses(answer),
    "asserts": lambda answer: bool(answer) and not admits_unknown(answer),
    "states": states,
    "mentions": mentions,
}
