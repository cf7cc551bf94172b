"""Constraints on the beginning and the end of an answer."""

import re

from stages.store.text_units import lower_words, sentences
from stages.tasks.constraint import Side, choice_of, constraint
from stages.tasks.words import texts_of

TEXTS = texts_of(__file__)
WORDS = "time home people day start end world light hands together again tomorrow house morning".split()
QUOTES = "\"'“”‘’«»"


@constraint(Side.test, "start", choice_of(phrase=TEXTS["phrases"]))
def start_phrase(answer: str, phrase: str) -> bool:
    """Ignore quotation marks and Markdown before the phrase."""
    return bool(re.match(rf"[{QUOTES}*_#>\s-]*{re.escape(phrase)}(?![^\W_]|['’-]\w)", answer, re.IGNORECASE))


@constraint(Side.aside, "end", choice_of(sentence=TEXTS["sentences"]))
def end_phrase(answer: str, sentence: str) -> bool:
    return [last.strip(QUOTES).lower() for last in sentences(answer)[-1:]] == [sentence.lower()]


@constraint(Side.test, "start letters words", choice_of(letter="ABCDFHILMNOPRSTW"))
def first_word_letter(answer: str, letter: str) -> bool:
    """Ignore the marker of a list item, such as `1.` or `a)`."""
    first = re.search(r"[^\W_]", re.sub(r"^(?:\d+|[A-Za-z])[.)]\s", "", answer))
    return first is not None and first[0].lower() == letter.lower()


@constraint(Side.test, "end words", choice_of(word=WORDS))
def last_word(answer: str, word: str) -> bool:
    return lower_words(answer.replace("_", " "))[-1:] == [word.lower()]


@constraint(Side.aside, "end questions")
def end_question(answer: str) -> bool:
    return answer.endswith(("?", "？"))


@constraint(Side.aside, "end exclamations")
def end_exclamation(answer: str) -> bool:
    return answer.endswith(("!", "！"))


@constraint(Side.aside, "start end length")
def same_start_and_end(answer: str) -> bool:
    words_by_sentence = [lower_words(sentence.replace("_", " ")) for sentence in sentences(answer)]
    return len(words_by_sentence) >= 3 and words_by_sentence[0] == words_by_sentence[-1]


@constraint(Side.aside, "start layout")
def start_with_number(answer: str) -> bool:
    return bool(re.match(rf"(?:#+ +)?[{QUOTES}*_~$€£]*(?!\d{{1,2}}[.)](?!\d))\d", answer))


@constraint(Side.test, "start questions")
def start_with_question(answer: str) -> bool:
    return any(first.rstrip(f"{QUOTES}!*_)").endswith(("?", "？")) for first in sentences(answer)[:1])
