"""Constraints on letters, capital letters and punctuation marks."""

import re
from collections.abc import Callable

from stages.store.text_units import lines, lower_words, sentences, words
from stages.tasks.constraint import Draw
from stages.tasks.words import patterns_of

SHORTENED, RANGE, DASH = (
    re.compile(patterns_of(__file__)[name]) for name in ("shortened", "range", "dash")
)
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
    "last_word_capitals": lambda answer: (
        any(map(_capital, words(answer)[-1:])) and not answer.isupper()
    ),
    "no_commas": lambda answer: not re.search("[,，،、]", answer),
    "exclamations_exactly": lambda answer, count: len(re.findall("[!！]", answer)) == count,
    "colons_at_least": lambda answer, count: len(re.findall("[:：]", answer)) >= count,
    "questions_exactly": lambda answer, count: len(re.findall("[?？]", answer)) == count,
    # Allow `'s` after a noun, because it may be a possessive.
    "no_contractions": lambda answer: not SHORTENED.search(answer.replace("_", " ")),
    # Allow a full stop after the ellipsis.
    "ellipsis_once": lambda answer: (
        re.findall(r"\.{3,}|…+\.?", answer) in (["..."], ["...."], ["…"], ["…."])
    ),
    "no_full_stops": lambda answer: (
        not re.search("[.。．]", answer)
        and (bool(re.search("[!?！？]", answer)) or len(lines(answer)) > 1)
    ),
    # Ignore the dash of a range such as 10–20, which is not between words.
    "dashes_at_least": lambda answer, count: (
        len(DASH.findall(RANGE.sub(" ", answer.replace("_", "")))) >= count
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


def first_word_capitals(answer: str) -> bool:
    answer_words = words(re.sub(r"^\d+[.)]\s+", "", answer))  # without the number of a list item
    return any(map(_capital, answer_words[:1])) and not answer.isupper()


def capital_every_word(answer: str) -> bool:
    heads = [word.lstrip("_")[:1] for word in words(answer)]
    return any(map(str.isupper, heads)) and all(
        head.isupper() or not head.isalpha() for head in heads
    )


def word_in_capitals(answer: str, word: str) -> bool:
    uses = [token for token in (part.strip("_") for part in words(answer)) if token.lower() == word]
    return bool(uses) and all(map(str.isupper, uses))


def _capital(word: str) -> bool:
    return word.isupper() and sum(map(str.isalpha, word)) > 1


def parentheses_at_least(answer: str, count: int) -> bool:
    # after a square bracket, the parentheses contain a link
    inside = re.findall(r"(?<!\])\(([^()]*)\)", answer)
    return sum(bool(re.search(r"\w\w", remark)) for remark in inside) >= count  # not "(s)" or "(1)"
