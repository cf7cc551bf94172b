"""Constraints on the number of words, sentences, paragraphs and lines."""

from stages.store.text_units import lines, paragraphs, sentences, words
from stages.tasks.constraint import Side, constraint, count_of, worded


@constraint(Side.train, "length", count_of(30, 40, 50, 60, 75))
@worded("""
    Use at most {count} words.
    Keep it to {count} words or fewer.
    Your answer must not be longer than {count} words.
    No more than {count} words, please.
    Stop before you go over {count} words.
""")
def words_at_most(answer: str, count: int) -> bool:
    return len(words(answer)) <= count


@constraint(Side.train, "length", count_of(30, 40, 50, 60, 70))
@worded("""
    Use at least {count} words.
    Write {count} words or more.
    Your answer must not be shorter than {count} words.
    I would like no fewer than {count} words on this.
    Make the answer {count} words long at the least.
""")
def words_at_least(answer: str, count: int) -> bool:
    return len(words(answer)) >= count


@constraint(Side.train, "length layout exclamations questions", count_of(2, 3, 4))
@worded("""
    Answer in exactly {count} sentences.
    Write {count} sentences, no more and no fewer.
    Your whole answer must be {count} sentences long.
    I want precisely {count} sentences from you.
    The number of sentences in the answer has to be {count}.
""")
def sentences_exactly(answer: str, count: int) -> bool:
    return len(sentences(answer)) == count


@constraint(Side.train, "length layout", count_of(2, 3, 4))
@worded("""
    Write exactly {count} paragraphs, with a blank line between them.
    Divide the answer into {count} paragraphs, no more and no fewer, and put an empty line between one and the next.
    Your answer must have {count} paragraphs in all. Separate them by blank lines.
    Use blank lines to split the text into exactly {count} paragraphs.
    Give me precisely {count} paragraphs. Leave a line empty after each one except the last.
""")
def paragraphs_exactly(answer: str, count: int) -> bool:
    return len(_with_words(paragraphs(answer))) == count


@constraint(
    Side.validation,
    "length",
    lambda rng, request: {"low": (low := rng.choice([20, 30, 40, 50])), "high": low + rng.choice([15, 20, 30])},
)
@worded("""
    Write at least {low} and at most {high} words.
    The length must be from {low} to {high} words.
    Use no fewer than {low} words and no more than {high}.
    Keep the number of words between {low} and {high}, both included.
    Your answer may be neither shorter than {low} words nor longer than {high} words.
""")
def words_between(answer: str, low: int, high: int) -> bool:
    return low <= len(words(answer)) <= high


@constraint(Side.test, "length layout exclamations questions", count_of(3, 4))
@worded("""
    Use at most {count} sentences.
    Say it in {count} sentences or fewer.
    Your answer must not have more than {count} sentences.
    Finish within {count} sentences.
    There should be no more than {count} sentences in what you write.
""")
def sentences_at_most(answer: str, count: int) -> bool:
    return 0 < len(sentences(answer)) <= count


@constraint(Side.aside, "length layout", count_of(3, 4, 5))
@worded("""
    Write exactly {count} lines, each with some text on it; blank lines do not count.
    Lay the answer out on {count} lines, no more and no fewer. Every line needs words, and empty ones are not counted.
    Your answer must take up {count} lines of text. Do not count blank lines, and leave no line without a word.
    Break the answer into precisely {count} lines that each say something, not counting any that are left blank.
    Blank lines aside, there must be {count} lines in all, and none of them may be without words.
""")
def lines_exactly(answer: str, count: int) -> bool:
    answer_lines = lines(answer)
    return len(_with_words(answer_lines)) == len(answer_lines) == count


@constraint(Side.test, "length", count_of(10, 12, 15))
@worded("""
    Write at least two sentences, none of them longer than {count} words.
    Keep every sentence to {count} words or fewer, and write two sentences or more.
    No sentence may have more than {count} words, and there must be at least two sentences.
    Use two or more sentences of at most {count} words each.
    Split the answer into short sentences, two at least. Each one can have up to {count} words.
""")
def sentence_words_at_most(answer: str, count: int) -> bool:
    answer_sentences = sentences(answer)
    return len(answer_sentences) >= 2 and all(len(words(sentence)) <= count for sentence in answer_sentences)


@constraint(Side.aside, "length layout", count_of(2, 3))
@worded("""
    Write two or more paragraphs of exactly {count} sentences each, with a blank line between paragraphs.
    Every paragraph must have {count} sentences, no more and no fewer. Use at least two paragraphs, set apart by \
blank lines.
    Use blank lines to divide the text into at least two paragraphs, and put precisely {count} sentences in each.
    There must be two paragraphs at least, an empty line between one and the next, and {count} sentences in every one.
    Begin a new paragraph, after a blank line, whenever you have written {count} sentences. Each paragraph, the last \
one too, needs exactly {count}, and I want at least two paragraphs.
""")
def paragraph_sentences(answer: str, count: int) -> bool:
    answer_paragraphs = _with_words(paragraphs(answer))
    return len(answer_paragraphs) >= 2 and all(len(sentences(paragraph)) == count for paragraph in answer_paragraphs)


def _with_words(parts: list[str]) -> list[str]:
    """Return the parts that contain words, without rules such as `---`."""
    return [part for part in parts if words(part)]
