"""Constraints on letters, capital letters and punctuation marks."""

import re
from collections.abc import Callable

from stages.store.text_units import lines, lower_words, sentences, words
from stages.tasks.constraint import Draw
from stages.tasks.words import patterns_of

SHORTENED = re.compile(patterns_of(__file__)["shortened"])
CHECKS: dict[str, Callable[..., bool]] = {
    "avoid_letter": lambda answer, letter: _has_letters(answer) and letter not in answer.lower(),
    # the parts of `well-prepared` count as words
    "long_words_at_least": lambda answer, count: len(re.findall(r"[^\W\d_]{10,}", answer)) >= count,
    "words_starting_with": lambda answer, letter, count: (
        sum(word.strip("_").startswith(letter) for word in lower_words(answer)) >= count
    ),
    "letter_at_least": lambda answer, letter, count: answer.lower().count(letter) >= count,
    "letter_at_most": lambda answer, letter, count: (
        _has_letters(answer) and answer.lower().count(letter) <= count
    ),
    "short_words_only": lambda answer, longest: (
        len(words(answer)) >= 15 and not re.search(rf"[^\W\d_]{{{longest + 1}}}", answer)
    ),
    "all_capitals": lambda answer: answer.isupper(),
    "all_lowercase": lambda answer: answer.islower(),
    "capital_words_at_least": lambda answer, count: (
        sum(map(_capital, words(answer))) >= count and any(map(str.islower, answer))
    ),
    "no_commas": lambda answer: not re.search("[,，،、]", answer),
    "exclamations_exactly": lambda answer, count: len(re.findall("[!！]", answer)) == count,
    "colons_at_least": lambda answer, count: len(re.findall("[:：]", answer)) >= count,
    "questions_exactly": lambda answer, count: len(re.findall("[?？]", answer)) == count,
    # Allow `'s` after a noun, because it may be a possessive.
    "no_contractions": lambda answer: not SHORTENED.search(answer.replace("_", " ")),
    "no_full_stops": lambda answer: (
        not re.search("[.。．]", answer)
        and (bool(re.search("[!?！？]", answer)) or len(lines(answer)) > 1)
    ),
}
DRAWS: dict[str, Draw] = {
    "avoid_letter": lambda rng, request: {"letter": rng.choice(_rarest("qzxjkv", request))},
    # about as often as an answer of sixty words can contain the letter
    "letter_at_least": lambda rng, request: {
        "letter": (letter := rng.choice("bkpvy")),
        "count": rng.randint(5, 7 if letter in "kv" else 12),
    },
    "letter_at_most": lambda rng, request: {
        "letter": rng.choice(_rarest("fgpuwy", request)),
        "count": rng.choice([2, 3, 4]),
    },
}


def different_starts(answer: str) -> bool:
    starts = [lower_words(sentence)[0].strip("_") for sentence in sentences(answer)]
    return len(starts) >= 3 and len(set(starts)) == len(starts)


def _has_letters(answer: str) -> bool:
    return any(map(str.isalpha, answer))


def _rarest(letters: str, request: str) -> list[str]:
    """Return the letters that are rarest in the request, because an answer about it can avoid them."""
    counts = {letter: request.lower().count(letter) for letter in letters}
    return [letter for letter, count in counts.items() if count == min(counts.values())]


def capital_first_sentence(answer: str) -> bool:
    first, *rest = sentences(answer) or [""]
    # without a closing mark, the line is a heading
    return (
        first.isupper() and first[-1] in ".!?…" and bool(rest) and not any(map(str.isupper, rest))
    )


def _capital(word: str) -> bool:
    return word.isupper() and sum(map(str.isalpha, word)) > 1


def parentheses_at_least(answer: str, count: int) -> bool:
    # after a square bracket, the parentheses contain a link
    inside = re.findall(r"(?<!\])\(([^()]*)\)", answer)
    return sum(bool(re.search(r"\w\w", remark)) for remark in inside) >= count  # not "(s)" or "(1)"
