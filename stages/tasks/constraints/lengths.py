"""Constraints on the number of words, sentences, paragraphs and lines."""

from collections.abc import Callable

from stages.store.text_units import lines, paragraphs, sentences, words
from stages.tasks.constraint import Draw

CHECKS: dict[str, Callable[..., bool]] = {
    "words_at_most": lambda answer, count: len(words(answer)) <= count,
    "words_at_least": lambda answer, count: len(words(answer)) >= count,
    "sentences_exactly": lambda answer, count: len(sentences(answer)) == count,
    "paragraphs_exactly": lambda answer, count: len(_with_words(paragraphs(answer))) == count,
    "words_between": lambda answer, low, high: low <= len(words(answer)) <= high,
    "sentences_at_most": lambda answer, count: 0 < len(sentences(answer)) <= count,
}
DRAWS: dict[str, Draw] = {
    "words_between": lambda rng, request: {
        "low": (low := rng.choice([20, 30, 40, 50])),
        "high": low + rng.choice([15, 20, 30]),
    }
}


def lines_exactly(answer: str, count: int) -> bool:
    answer_lines = lines(answer)
    return len(_with_words(answer_lines)) == len(answer_lines) == count


def sentence_words_at_most(answer: str, count: int) -> bool:
    answer_sentences = sentences(answer)
    return len(answer_sentences) >= 2 and all(len(words(sentence)) <= count for sentence in answer_sentences)


def paragraph_sentences(answer: str, count: int) -> bool:
    answer_paragraphs = _with_words(paragraphs(answer))
    return len(answer_paragraphs) >= 2 and all(len(sentences(paragraph)) == count for paragraph in answer_paragraphs)


def _with_words(parts: list[str]) -> list[str]:
    """Return the parts that contain words, without rules such as `---`."""
    return [part for part in parts if words(part)]
