"""Constraints on capital letters."""

import re

from stages.store.text_units import sentences, words
from stages.tasks.constraint import Side, choice_of, constraint, count_of

COMMON = "always best careful day important life often people simple small time way world".split()


@constraint(Side.train, "case")
def all_capitals(answer: str) -> bool:
    return answer.isupper()


@constraint(Side.train, "case")
def all_lowercase(answer: str) -> bool:
    return answer.islower()


@constraint(Side.train, "case", count_of(2, 3, 4))
def capital_words_at_least(answer: str, count: int) -> bool:
    return sum(map(_capital, words(answer))) >= count and any(map(str.islower, answer))


@constraint(Side.validation, "case start")
def capital_first_sentence(answer: str) -> bool:
    first, *rest = sentences(answer) or [""]
    # without a closing mark, the line is a heading
    return first.isupper() and first[-1] in ".!?…" and bool(rest) and not any(map(str.isupper, rest))


@constraint(Side.aside, "case end")
def last_word_capitals(answer: str) -> bool:
    return any(map(_capital, words(answer)[-1:])) and not answer.isupper()


@constraint(Side.aside, "case start")
def first_word_capitals(answer: str) -> bool:
    answer_words = words(re.sub(r"^\d+[.)]\s+", "", answer))  # without the number of a list item
    return any(map(_capital, answer_words[:1])) and not answer.isupper()


@constraint(Side.aside, "case")
def capital_every_word(answer: str) -> bool:
    heads = [word.lstrip("_")[:1] for word in words(answer)]
    return any(map(str.isupper, heads)) and all(head.isupper() or not head.isalpha() for head in heads)


@constraint(Side.aside, "case words", choice_of(word=COMMON))
def word_in_capitals(answer: str, word: str) -> bool:
    uses = [token for token in (part.strip("_") for part in words(answer)) if token.lower() == word]
    return bool(uses) and all(map(str.isupper, uses))


def _capital(word: str) -> bool:
    return word.isupper() and sum(map(str.isalpha, word)) > 1
