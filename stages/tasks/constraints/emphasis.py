"""Constraints on Markdown emphasis: bold, italics, code and quotations."""

import re

from stages.store.text_units import lines, lower_words, sentences, words
from stages.tasks.constraint import Side, choice_of, constraint, count_of

BOLD = re.compile(r"(?<![*\w\\])\*\*\*?(?![\s*])((?:[^*\n]|\*(?!\*))+?)(?<!\s)\*\*")
SINGLE = re.compile(r"(?<![*\w\\])\*(?![\s*])([^*\n]+)(?<!\s)\*(?!\*)")
UNDERSCORES = re.compile(r"(?<![\w\\])_(?![\s_])([^_\n]+)(?<!\s)_(?!\w)")
CODE = re.compile(r"(?<![`\w\\])`(?!`)([^`\n]+)`(?!`)")

COMMON = "change good help home idea light need never part place reason useful year".split()


@constraint(Side.train, "emphasis", count_of(2, 3, 4))
def highlighted_parts(answer: str, count: int) -> bool:
    single = _passages(SINGLE, BOLD.sub(r"\1", answer))
    return len(_passages(BOLD, answer)) + len(single) >= count


@constraint(Side.train, "emphasis", count_of(2, 3, 4))
def bold_parts(answer: str, count: int) -> bool:
    return len(_passages(BOLD, answer)) >= count


@constraint(Side.validation, "emphasis start")
def first_sentence_bold(answer: str) -> bool:
    bold, answer_sentences = BOLD.match(answer), sentences(answer.replace("*", ""))
    if bold is None or len(answer_sentences) < 2 or answer_sentences[0][-1] not in ".!?…":  # without mark: a heading
        return False
    return [words(part) for part in sentences(bold[1].replace("*", ""))] == [words(answer_sentences[0])]


@constraint(Side.aside, "emphasis words", choice_of(word=COMMON))
def word_in_bold(answer: str, word: str) -> bool:
    return any(word in lower_words(part.replace("_", " ")) for part in _passages(BOLD, answer))


@constraint(Side.aside, "emphasis", count_of(2, 3, 4))
def inline_code(answer: str, count: int) -> bool:
    return len(_passages(CODE, answer)) >= count


@constraint(Side.aside, "emphasis layout", count_of(2, 3, 4))
def quote_block(answer: str, count: int) -> bool:
    return sum(re.match(r"> .*\w", line) is not None for line in lines(answer)) >= count


@constraint(Side.aside, "emphasis", count_of(2, 3, 4))
def italic_parts(answer: str, count: int) -> bool:
    return len(_passages(UNDERSCORES, answer)) >= count


def _passages(pattern: re.Pattern[str], text: str) -> list[str]:
    return [part for part in pattern.findall(text) if words(part)]
