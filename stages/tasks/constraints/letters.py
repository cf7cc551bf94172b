"""Constraints on the letters of words, their length and their first letter."""

import random
import re
from typing import Any

from stages.store.text_units import lower_words, sentences, words
from stages.tasks.constraint import Side, constraint, count_of, worded


@constraint(Side.train, "letters words", lambda rng, request: {"letter": rng.choice(_rarest("qzxjkv", request))})
@worded("""
    Do not use the letter "{letter}" anywhere.
    Avoid every word that has the letter "{letter}" in it.
    No word of your answer may contain the letter "{letter}".
    Write it entirely without the letter "{letter}".
    My "{letter}" key is broken, so please do without that letter, small or capital, all the way through.
    The letter "{letter}" must not occur in your answer, neither small nor as a capital.
""")
def avoid_letter(answer: str, letter: str) -> bool:
    return _has_letters(answer) and letter not in answer.lower()


@constraint(Side.train, "letters words", count_of(2, 3, 4))
@worded("""
    Use at least {count} words of 10 or more letters.
    Put in at least {count} long words, meaning words of ten letters or more.
    There should be {count} or more words with 10 letters or more in your answer.
    Let no fewer than {count} of your words be at least ten letters long.
    I like long words: at least {count} of them should have 10 letters or more.
""")
def long_words_at_least(answer: str, count: int) -> bool:
    return len(re.findall(r"[^\W\d_]{10,}", answer)) >= count  # the parts of `well-prepared` count as words


@constraint(
    Side.validation,
    "letters words",
    lambda rng, request: {"letter": rng.choice("bcpmd"), "count": rng.choice([3, 4, 5])},
)
@worded("""
    Use at least {count} words that begin with the letter "{letter}".
    At least {count} words of your answer should start with "{letter}".
    Put in {count} or more words whose first letter is "{letter}".
    Let no fewer than {count} words begin with "{letter}", small or capital.
    I want to find the letter "{letter}" at the beginning of {count} words or more.
""")
def words_starting_with(answer: str, letter: str, count: int) -> bool:
    return sum(word.strip("_").startswith(letter) for word in lower_words(answer)) >= count


@constraint(Side.test, "letters words", lambda rng, request: _letter_often(rng))
@worded("""
    Use the letter "{letter}" at least {count} times.
    The letter "{letter}" should occur {count} times or more in your answer.
    Write it so that I can count at least {count} times the letter "{letter}", small or capital.
    There must be no fewer than {count} of the letter "{letter}" in your text as a whole.
    Choose your words so that the letter "{letter}" comes up {count} or more times altogether.
""")
def letter_at_least(answer: str, letter: str, count: int) -> bool:
    return answer.lower().count(letter) >= count


@constraint(
    Side.test,
    "letters words",
    lambda rng, request: {"letter": rng.choice(_rarest("fgpuwy", request)), "count": rng.choice([2, 3, 4])},
)
@worded("""
    Use the letter "{letter}" at most {count} times.
    The letter "{letter}" must not occur more than {count} times in your answer.
    Write it with no more than {count} of the letter "{letter}", small and capital ones together.
    Be sparing with the letter "{letter}": your whole answer may have it {count} times at most.
    Choose your words so that the letter "{letter}" comes up {count} times or fewer altogether.
""")
def letter_at_most(answer: str, letter: str, count: int) -> bool:
    return _has_letters(answer) and answer.lower().count(letter) <= count


@constraint(Side.test, "start words length")
@worded("""
    Write at least 3 sentences, and begin each of them with a different word.
    No two sentences may start with the same word. Use 3 sentences or more.
    Every sentence must open with a word that no other sentence opens with, and there should be at least 3 of them.
    Vary how your sentences begin: the first words of your 3 or more sentences must all be different.
    Give me 3 or more sentences in which the same first word never comes twice.
""")
def different_starts(answer: str) -> bool:
    starts = [lower_words(sentence)[0].strip("_") for sentence in sentences(answer)]
    return len(starts) >= 3 and len(set(starts)) == len(starts)


@constraint(Side.test, "letters words length", lambda rng, request: {"longest": rng.choice([9, 10, 11])})
@worded("""
    Use only words of at most {longest} letters, and write at least 15 words.
    No word may be longer than {longest} letters. Your answer should have 15 words or more.
    Keep your words short: {longest} letters is the most that one may have. Write no fewer than 15 words.
    Write 15 words or more, none with more than {longest} letters.
    Avoid all words of more than {longest} letters, in an answer of at least 15 words.
""")
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
