"""Constraints on the number of words, sentences, paragraphs and lines."""

from stages.store.text_units import lines, paragraphs, sentences, words
from stages.tasks.constraint import Side, constraint, count_of


@constraint(Side.train, "length", count_of(30, 40, 50, 60, 75))
def words_at_most(answer: str, count: int) -> bool:
    return len(words(answer)) <= count


@constraint(Side.train, "length", count_of(30, 40, 50, 60, 70))
def words_at_least(answer: str, count: int) -> bool:
    return len(words(answer)) >= count


@constraint(Side.train, "length layout exclamations questions", count_of(2, 3, 4))
def sentences_exactly(answer: str, count: int) -> bool:
    return len(sentences(answer)) == count


@constraint(Side.train, "length layout", count_of(2, 3, 4))
def paragraphs_exactly(answer: str, count: int) -> bool:
    return len(_with_words(paragraphs(answer))) == count


@constraint(
    Side.validation,
    "length",
    lambda rng, request: {"low": (low := rng.choice([20, 30, 40, 50])), "high": low + rng.choice([15, 20, 30])},
)
def words_between(answer: str, low: int, high: int) -> bool:
    return low <= len(words(answer)) <= high


@constraint(Side.test, "length layout exclamations questions", count_of(3, 4))
def sentences_at_most(answer: str, count: int) -> bool:
    return 0 < len(sentences(answer)) <= count


@constraint(Side.aside, "length layout", count_of(3, 4, 5))
def lines_exactly(answer: str, count: int) -> bool:
    answer_lines = lines(answer)
    return len(_with_words(answer_lines)) == len(answer_lines) == count


@constraint(Side.test, "length", count_of(10, 12, 15))
def sentence_words_at_most(answer: str, count: int) -> bool:
    answer_sentences = sentences(answer)
    return len(answer_sentences) >= 2 and all(len(words(sentence)) <= count for sentence in answer_sentences)


@constraint(Side.aside, "length layout", count_of(2, 3))
def paragraph_sentences(answer: str, count: int) -> bool:
    answer_paragraphs = _with_words(paragraphs(answer))
    return len(answer_paragraphs) >= 2 and all(len(sentences(paragraph)) == count for paragraph in answer_paragraphs)


def _with_words(parts: list[str]) -> list[str]:
    """Return the parts that contain words, without rules such as `---`."""
    return [part for part in parts if words(part)]
