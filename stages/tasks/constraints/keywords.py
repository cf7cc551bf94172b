"""Constraints on words that an answer must or must not contain, how often, and where."""

import random
import re
from collections.abc import Callable

from stages.store.text_units import paragraphs, plain_words, sentences
from stages.tasks.constraint import Draw
from stages.tasks.words import ADJECTIVES, words_of

FREQUENT, COMMON, LIKELY = (words_of(__file__)[name] for name in ("frequent", "common", "likely"))
FIRST_PERSON = re.compile(  # without the `I` of `i.e.` and `A.I.`
    r"(?<![^\W_])(?:(?<!\b\w\.)i(?!\.\w\b)|me|my|mine|myself)(?![^\W_])", re.IGNORECASE
)
MARKER = re.compile(r"(?m)^[ \t#*>_+-]*\d{1,2}[.):][*_]*(?=\s|$)")  # marks a numbered item, also in bold or a heading
FIGURE = re.compile(r"(?<![^\W_])\d+(?:[.,:]\d+)*")  # `1,000` and `10:30` are one figure each; the 2 of `H2O` is none
CHECKS: dict[str, Callable[..., bool]] = {
    "include_words": lambda answer, words: set(words) <= set(plain_words(answer)),
    "avoid_words": lambda answer, words: set(words).isdisjoint(plain_words(answer)),
    "word_at_least": lambda answer, word, count: plain_words(answer).count(word) >= count,
    "word_exactly": lambda answer, word, count: plain_words(answer).count(word) == count,
    "word_in_last_sentence": lambda answer, word: any(word in plain_words(last) for last in sentences(answer)[-1:]),
    "numbers_at_least": lambda answer, count: len(FIGURE.findall(MARKER.sub("", answer))) >= count,
    "avoid_first_person": lambda answer: not FIRST_PERSON.search(answer),
}
DRAWS: dict[str, Draw] = {
    "include_words": lambda rng, request: {"words": _some(rng, request, COMMON + ADJECTIVES, rng.choice([2, 3]))},
    "avoid_words": lambda rng, request: {"words": _some(rng, request, LIKELY, rng.choice([2, 3]))},
    "word_at_least": lambda rng, request: {"word": _one(rng, request), "count": rng.choice([2, 3, 4])},
    "words_in_order": lambda rng, request: {"words": _some(rng, request, COMMON, rng.choice([2, 3]))},
    "word_exactly": lambda rng, request: {"word": _one(rng, request), "count": rng.choice([2, 3, 4])},
    "word_in_last_sentence": lambda rng, request: {"word": _some(rng, request, COMMON, 1)[0]},
    "word_in_every_paragraph": lambda rng, request: {"word": _one(rng, request)},
}


def words_in_order(answer: str, words: list[str]) -> bool:
    """Compare the first use of each word."""
    answer_words = plain_words(answer)
    first = [answer_words.index(word) for word in words if word in answer_words]
    return len(first) == len(words) and first == sorted(first)


def word_in_every_paragraph(answer: str, word: str) -> bool:
    word_lists = [text for text in map(plain_words, paragraphs(answer)) if text]
    return len(word_lists) >= 2 and all(word in text for text in word_lists)


def _some(rng: random.Random, request: str, pool: list[str], count: int) -> list[str]:
    """Return different words of the pool that are not in the request."""
    return rng.sample(sorted(set(pool) - set(plain_words(request))), count)


def _one(rng: random.Random, request: str) -> str:
    return _some(rng, request, FREQUENT, 1)[0]
