"""Constraints on capital letters."""

import re
from collections.abc import Callable

from stages.store.text_units import sentences, words

CHECKS: dict[str, Callable[..., bool]] = {
    "all_capitals": lambda answer: answer.isupper(),
    "all_lowercase": lambda answer: answer.islower(),
    "capital_words_at_least": lambda answer, count: (
        sum(map(_capital, words(answer))) >= count and any(map(str.islower, answer))
    ),
    "last_word_capitals": lambda answer: any(map(_capital, words(answer)[-1:])) and not answer.isupper(),
}


def capital_first_sentence(answer: str) -> bool:
    first, *rest = sentences(answer) or [""]
    # without a closing mark, the line is a heading
    return first.isupper() and first[-1] in ".!?…" and bool(rest) and not any(map(str.isupper, rest))


def first_word_capitals(answer: str) -> bool:
    answer_words = words(re.sub(r"^\d+[.)]\s+", "", answer))  # without the number of a list item
    return any(map(_capital, answer_words[:1])) and not answer.isupper()


def capital_every_word(answer: str) -> bool:
    heads = [word.lstrip("_")[:1] for word in words(answer)]
    return any(map(str.isupper, heads)) and all(head.isupper() or not head.isalpha() for head in heads)


def word_in_capitals(answer: str, word: str) -> bool:
    uses = [token for token in (part.strip("_") for part in words(answer)) if token.lower() == word]
    return bool(uses) and all(map(str.isupper, uses))


def _capital(word: str) -> bool:
    return word.isupper() and sum(map(str.isalpha, word)) > 1
