"""Constraints on Markdown emphasis: bold, italics, code and quotations."""

import re
from collections.abc import Callable

from stages.store.text_units import lines, lower_words, sentences, words

BOLD = re.compile(r"(?<![*\w\\])\*\*\*?(?![\s*])((?:[^*\n]|\*(?!\*))+?)(?<!\s)\*\*")
SINGLE = re.compile(r"(?<![*\w\\])\*(?![\s*])([^*\n]+)(?<!\s)\*(?!\*)")
UNDERSCORES = re.compile(r"(?<![\w\\])_(?![\s_])([^_\n]+)(?<!\s)_(?!\w)")
CODE = re.compile(r"(?<![`\w\\])`(?!`)([^`\n]+)`(?!`)")

CHECKS: dict[str, Callable[..., bool]] = {
    "bold_parts": lambda answer, count: len(_passages(BOLD, answer)) >= count,
    "word_in_bold": lambda answer, word: any(
        word in lower_words(part.replace("_", " ")) for part in _passages(BOLD, answer)
    ),
    "inline_code": lambda answer, count: len(_passages(CODE, answer)) >= count,
    "quote_block": lambda answer, count: sum(re.match(r"> .*\w", line) is not None for line in lines(answer)) >= count,
    "italic_parts": lambda answer, count: len(_passages(UNDERSCORES, answer)) >= count,
}


def highlighted_parts(answer: str, count: int) -> bool:
    single = _passages(SINGLE, BOLD.sub(r"\1", answer))
    return len(_passages(BOLD, answer)) + len(single) >= count


def first_sentence_bold(answer: str) -> bool:
    bold, answer_sentences = BOLD.match(answer), sentences(answer.replace("*", ""))
    if bold is None or len(answer_sentences) < 2 or answer_sentences[0][-1] not in ".!?…":  # without mark: a heading
        return False
    return [words(part) for part in sentences(bold[1].replace("*", ""))] == [words(answer_sentences[0])]


def _passages(pattern: re.Pattern[str], text: str) -> list[str]:
    return [part for part in pattern.findall(text) if words(part)]
