"""Constraints on the beginning and the end of an answer."""

import re
from collections.abc import Callable

from stages.store.text_units import lower_words, sentences

QUOTES = "\"'“”‘’«»"
CHECKS: dict[str, Callable[..., bool]] = {
    # quotation marks and Markdown may stand before the phrase
    "start_phrase": lambda answer, phrase: bool(
        re.match(rf"[{QUOTES}*_#>\s-]*{re.escape(phrase)}(?![^\W_]|['’-]\w)", answer, re.IGNORECASE)
    ),
    "end_phrase": lambda answer, sentence: (
        [last.strip(QUOTES).lower() for last in sentences(answer)[-1:]] == [sentence.lower()]
    ),
    "last_word": lambda answer, word: lower_words(answer.replace("_", " "))[-1:] == [word.lower()],
    "end_question": lambda answer: answer.endswith(("?", "？")),
    "end_exclamation": lambda answer: answer.endswith(("!", "！")),
    "start_with_number": lambda answer: bool(
        re.match(rf"(?:#+ +)?[{QUOTES}*_~$€£]*(?!\d{{1,2}}[.)](?!\d))\d", answer)
    ),
    "start_with_question": lambda answer: any(
        first.rstrip(f"{QUOTES}!*_)").endswith(("?", "？")) for first in sentences(answer)[:1]
    ),
}


def first_word_letter(answer: str, letter: str) -> bool:
    """Ignore the marker of a list item, such as `1.` or `a)`."""
    first = re.search(r"[^\W_]", re.sub(r"^(?:\d+|[A-Za-z])[.)]\s", "", answer))
    return first is not None and first[0].lower() == letter.lower()


def same_start_and_end(answer: str) -> bool:
    words_by_sentence = [lower_words(sentence.replace("_", " ")) for sentence in sentences(answer)]
    return len(words_by_sentence) >= 3 and words_by_sentence[0] == words_by_sentence[-1]
