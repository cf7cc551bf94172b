"""Constraints on the letters of words, their length and their first letter."""

import random
import re
from typing import Any

from stages.store.text_units import lower_words, sentences, words
from stages.tasks.constraint import Side, choice_of, constraint, count_of


@constraint(Side.train, "letters words", lambda rng, request: {"letter": rng.choice(_rarest("qzxjkv", request))})
def avoid_letter(answer: str, letter: str) -> bool:
    return _has_letters(answer) and letter not in answer.lower()


@constraint(Side.train, "letters words", count_of(2, 3, 4))
def long_words_at_least(answer: str, count: int) -> bool:
    return len(re.findall(r"[^\W\d_]{10,}", answer)) >= count  # the parts of `well-prepared` count as words


@constraint(Side.validation, "letters words", choice_of(letter="bcpmd", count=[3, 4, 5]))
def words_starting_with(answer: str, letter: str, count: int) -> bool:
    return sum(word.strip("_").startswith(letter) for word in lower_words(answer)) >= count


@constraint(Side.test, "letters words", lambda rng, request: _letter_often(rng))
def letter_at_least(answer: str, letter: str, count: int) -> bool:
    return answer.lower().count(letter) >= count


@constraint(
    Side.test,
    "letters words",
    lambda rng, request: {"letter": rng.choice(_rarest("fgpuwy", request)), "count": rng.choice([2, 3, 4])},
)
def letter_at_most(answer: str, letter: str, count: int) -> bool:
    return _has_letters(answer) and answer.lower().count(letter) <= count


@constraint(Side.test, "start words length")
def different_starts(answer: str) -> bool:
    starts = [lower_words(sentence)[0].strip("_") for sentence in sentences(answer)]
    return len(starts) >= 3 and len(set(starts)) == len(starts)


@constraint(Side.test, "letters words length", choice_of(longest=[9, 10, 11]))
def short_words_only(answer: str, longest: int) -> bool:
    return len(words(answer)) >= 15 and not re.search(rf"[^\W\d_]{{{longest + 1}}}", answer)


def _has_letters(answer: str) -> bool:
    return any(map(str.isalpha, answer))


def _rarest(letters: str, request: str) -> list[str]:
    """Return the letters that are rarest in the request, because an answer about it can avoid them."""
    counts = {letter: request.lower().count(letter) for letter in letters}
    return [letter for letter, count in counts.items() if count == min(counts.values())]


def _letter_often(rng: random.Random) -> dict[str, Any]:
    """Return a letter, and how often an answer of about sixty words can contain it."""
    letter = rng.choice("bkpvy")
    return {"letter": letter, "count": rng.randint(5, 7 if letter in "kv" else 12)}
