"""Constraints on the words of an answer, on its beginning and end, and on bold and other emphasis."""

import random
import re
from collections.abc import Callable

from stages.store.text_units import lower_words, plain_words, sentences, words
from stages.tasks.constraint import Draw
from stages.tasks.words import ADJECTIVES, words_of

FREQUENT, COMMON, LIKELY = (words_of(__file__)[name] for name in ("frequent", "common", "likely"))
# without the `I` of `i.e.` and `A.I.`
FIRST_PERSON = re.compile(
    r"(?<![^\W_])(?:(?<!\b\w\.)i(?!\.\w\b)|me|my|mine|myself)(?![^\W_])", re.IGNORECASE
)
QUOTES = "\"'“”‘’«»"
BOLD = re.compile(r"(?<![*\w\\])\*\*\*?(?![\s*])((?:[^*\n]|\*(?!\*))+?)(?<!\s)\*\*")
SINGLE = re.compile(r"(?<![*\w\\])\*(?![\s*])([^*\n]+)(?<!\s)\*(?!\*)")
CHECKS: dict[str, Callable[..., bool]] = {
    "include_words": lambda answer, words: set(words) <= set(plain_words(answer)),
    "avoid_words": lambda answer, words: set(words).isdisjoint(plain_words(answer)),
    "word_at_least": lambda answer, word, count: plain_words(answer).count(word) >= count,
    "word_in_last_sentence": lambda answer, word: any(
        word in plain_words(last) for last in sentences(answer)[-1:]
    ),
    "avoid_first_person": lambda answer: not FIRST_PERSON.search(answer),
    # quotation marks and Markdown may stand before the phrase
    "start_phrase": lambda answer, phrase: bool(
        re.match(rf"[{QUOTES}*_#>\s-]*{re.escape(phrase)}(?![^\W_]|['’-]\w)", answer, re.IGNORECASE)
    ),
    "last_word": lambda answer, word: lower_words(answer.replace("_", " "))[-1:] == [word.lower()],
    "start_with_question": lambda answer: any(
        first.rstrip(f"{QUOTES}!*_)").endswith(("?", "？")) for first in sentences(answer)[:1]
    ),
    "bold_parts": lambda answer, count: len(_passages(BOLD, answer)) >= count,
}
DRAWS: dict[str, Draw] = {
    "include_words": lambda rng, request: {
        "words": _some(rng, request, COMMON + ADJECTIVES, rng.choice([2, 3]))
    },
    "avoid_words": lambda rng, request: {"words": _some(rng, request, LIKELY, rng.choice([2, 3]))},
    "word_at_least": lambda rng, request: {
        "word": _one(rng, request),
        "count": rng.choice([2, 3, 4]),
    },
    "words_in_order": lambda rng, request: {
        "words": _some(rng, request, COMMON, rng.choice([2, 3]))
    },
    "word_in_last_sentence": lambda rng, request: {"word": _some(rng, request, COMMON, 1)[0]},
}


def words_in_order(answer: str, words: list[str]) -> bool:
    """Compare the first use of each word."""
    answer_words = plain_words(answer)
    first = [answer_words.index(word) for word in words if word in answer_words]
    return len(first) == len(words) and first == sorted(first)


def _some(rng: random.Random, request: str, pool: list[str], count: int) -> list[str]:
    """Return different words of the pool that are not in the request."""
    return rng.sample(sorted(set(pool) - set(plain_words(request))), count)


def _one(rng: random.Random, request: str) -> str:
    return _some(rng, request, FREQUENT, 1)[0]


def first_word_letter(answer: str, letter: str) -> bool:
    """Ignore the marker of a list item, such as `1.` or `a)`."""
    first = re.search(r"[^\W_]", re.sub(r"^(?:\d+|[A-Za-z])[.)]\s", "", answer))
    return first is not None and first[0].lower() == letter.lower()


def highlighted_parts(answer: str, count: int) -> bool:
    return len(_passages(BOLD, answer)) + len(_passages(SINGLE, BOLD.sub(r"\1", answer))) >= count


def first_sentence_bold(answer: str) -> bool:
    bold, answer_sentences = BOLD.match(answer), sentences(answer.replace("*", ""))
    # without mark: a heading
    if bold is None or len(answer_sentences) < 2 or answer_sentences[0][-1] not in ".!?…":
        return False
    return [words(part) for part in sentences(bold[1].replace("*", ""))] == [
        words(answer_sentences[0])
    ]


def _passages(pattern: re.Pattern[str], text: str) -> list[str]:
    return [part for part in pattern.findall(text) if words(part)]
