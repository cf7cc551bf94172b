"""Constraints on Markdown emphasis: bold, italics, code and quotations."""

import re

from stages.store.text_units import lines, lower_words, sentences, words
from stages.tasks.constraint import Side, constraint, count_of, worded

BOLD = re.compile(r"(?<![*\w\\])\*\*\*?(?![\s*])((?:[^*\n]|\*(?!\*))+?)(?<!\s)\*\*")
SINGLE = re.compile(r"(?<![*\w\\])\*(?![\s*])([^*\n]+)(?<!\s)\*(?!\*)")
UNDERSCORES = re.compile(r"(?<![\w\\])_(?![\s_])([^_\n]+)(?<!\s)_(?!\w)")
CODE = re.compile(r"(?<![`\w\\])`(?!`)([^`\n]+)`(?!`)")

COMMON = "change good help home idea light need never part place reason useful year".split()


@constraint(Side.train, "emphasis", count_of(2, 3, 4))
@worded("""
    Highlight at least {count} parts of the answer with *single asterisks* or **double asterisks**.
    Put {count} or more words or phrases between asterisks, as in *this* or **this**.
    At least {count} passages must be highlighted: write *like this* or **like this**.
    Mark no fewer than {count} parts of your answer in Markdown, either in *single* or in **double** asterisks.
    Make {count} or more passages stand out by putting one asterisk or two on both sides of each, as in *so* or **so**.
""")
def highlighted_parts(answer: str, count: int) -> bool:
    single = _passages(SINGLE, BOLD.sub(r"\1", answer))
    return len(_passages(BOLD, answer)) + len(single) >= count


@constraint(Side.train, "emphasis", count_of(2, 3, 4))
@worded("""
    Put at least {count} parts of the answer in bold with **double asterisks**.
    Use Markdown bold, **like this**, for {count} or more words or phrases.
    At least {count} passages must be between double asterisks, as in **this**.
    Write no fewer than {count} words or phrases in **bold**, with two asterisks on both sides of each.
    Make {count} or more parts of your answer bold: each goes between ** and **.
""")
def bold_parts(answer: str, count: int) -> bool:
    return len(_passages(BOLD, answer)) >= count


@constraint(Side.validation, "emphasis start")
@worded("""
    Begin with a full sentence in **double asterisks**, close them where it ends, and write at least one sentence more.
    Open the answer with exactly one full sentence in bold (**like this**), then go on with one or more others.
    The answer must begin with a complete sentence in **bold**. The double asterisks hold the whole of that sentence \
and nothing more, and at least one other sentence follows.
    Put ** before and after the sentence that opens your answer, the whole of it and no more; it is a full sentence, \
and the answer goes on after it.
    Write two sentences or more. The answer opens with the first, a full sentence, all of it and nothing else between \
** and **.
""")
def first_sentence_bold(answer: str) -> bool:
    bold, answer_sentences = BOLD.match(answer), sentences(answer.replace("*", ""))
    if bold is None or len(answer_sentences) < 2 or answer_sentences[0][-1] not in ".!?…":  # without mark: a heading
        return False
    return [words(part) for part in sentences(bold[1].replace("*", ""))] == [words(answer_sentences[0])]


@constraint(Side.aside, "emphasis words", lambda rng, request: {"word": rng.choice(COMMON)})
@worded("""
    Use the word "{word}" and put it in bold, with **double asterisks**, at least once.
    The word "{word}" must occur between double asterisks, **like this**, at least one time.
    At least once, write the word "{word}" in bold: ** goes before it and ** after it.
    Include the word "{word}". In one place or more it has to stand in **bold**, between double asterisks.
    Somewhere in your answer the word "{word}" should be in bold type, which is written with **two asterisks** on \
both sides.
""")
def word_in_bold(answer: str, word: str) -> bool:
    return any(word in lower_words(part.replace("_", " ")) for part in _passages(BOLD, answer))


@constraint(Side.aside, "emphasis", count_of(2, 3, 4))
@worded("""
    Put at least {count} words or terms in `backticks`, each in a pair of its own.
    Write {count} or more of the words as code, every one between its own `backticks`.
    At least {count} words must each stand between single backticks, as `this` does.
    Mark no fewer than {count} words or terms as inline code, `like` `this`, with one backtick on each side.
    Pick {count} or more words or terms and put a backtick right before and right after each of them.
""")
def inline_code(answer: str, count: int) -> bool:
    return len(_passages(CODE, answer)) >= count


@constraint(Side.aside, "emphasis layout", count_of(2, 3, 4))
@worded("""
    Include at least {count} lines that begin with "> " and have text after it.
    Write {count} or more lines as a Markdown quotation: each starts with "> ", the sign and a space, then text.
    At least {count} lines of the answer must begin with "> ", followed by some words.
    Put the sign ">" and a space at the start of {count} lines or more, before their text.
    Your answer should have quoted lines, no fewer than {count}, each of which opens with "> " and goes on with words.
""")
def quote_block(answer: str, count: int) -> bool:
    return sum(re.match(r"> .*\w", line) is not None for line in lines(answer)) >= count


@constraint(Side.aside, "emphasis", count_of(2, 3, 4))
@worded("""
    Put at least {count} parts of the answer in italics with _single underscores_.
    Use underscores for italics, _like this_, on {count} or more words or phrases.
    At least {count} passages must stand between single underscores, as in _this_.
    Write no fewer than {count} words or phrases in italics, with one underscore on each side, as in _so_.
    Mark {count} or more parts of your answer by putting _ right before and right after each of them.
""")
def italic_parts(answer: str, count: int) -> bool:
    return len(_passages(UNDERSCORES, answer)) >= count


def _passages(pattern: re.Pattern[str], text: str) -> list[str]:
    return [part for part in pattern.findall(text) if words(part)]
