"""Constraints on lists: the number of items, their marks, their content, and the text around them."""

import re
from unicodedata import normalize

from stages.store.text_units import BULLET, lines, lower_words, words
from stages.tasks.constraint import Side, constraint, count_of, worded

DASH = re.compile(r"\s*[-*]\s+(?=\S)")
MARKED = r"\s*(?:[-*•+]\s+)?[*_]*\(?({})[.)][*_]*\s+(?=\S)"  # a marker, also in bold, in brackets or after a bullet
NUMBER = re.compile(MARKED.format(r"\d{1,3}"))
LETTER = re.compile(MARKED.format("[A-Za-z]"))
ITEM = re.compile(f"{NUMBER.pattern}|{BULLET.pattern}")
BOX = re.compile(r"\s*(?:[-*•+]\s+)?\[ \]\s*\S")


@constraint(Side.train, "layout", count_of(2, 3, 4))
@worded("""
    Include exactly {count} bullet points, each on a line of its own that begins with "- " or "* ".
    Give exactly {count} bullets, no more and no fewer. Begin each one on a new line with "- " or "* ".
    There should be {count} bullet points in your answer, neither more nor fewer, marked with "* " or "- " at the \
start of the line.
    Your answer must have a list of exactly {count} bullets. Start every bullet with "- " or "* ", one per line.
    Use "- " or "* " at the start of a line to mark bullet points, and write exactly {count} of them.
""")
def bullets_exactly(answer: str, count: int) -> bool:
    return len(_items(answer, BULLET)) == len(_items(answer, DASH)) == count


@constraint(Side.train, "layout", count_of(2, 3, 4))
@worded("""
    Give a numbered list of exactly {count} items, numbered in order from 1, one per line.
    Number your points from 1 upwards, each number at the start of a line, and stop after exactly {count} of them.
    Include exactly {count} numbered items. Each stands on a line of its own, and the numbers run in order from 1.
    Your answer should have {count} numbered points, no more and no fewer, counted from 1 and each on a new line.
    Write exactly {count} items as a numbered list that counts up from 1, with each item on its own line.
""")
def numbered_exactly(answer: str, count: int) -> bool:
    return [int(mark) for mark in _marks(answer, NUMBER)] == list(range(1, count + 1))


@constraint(Side.train, "layout", count_of(2, 3, 4))
@worded("""
    Give a list of exactly {count} items, each on its own line, lettered in order from a: a) b) or A. B. and so on.
    Mark your points with letters in order, as in A. B. or a) b), one point per line, and give exactly {count} of them.
    Include exactly {count} lettered items. Put each on a new line that begins with a) b) and so on, or A. B. \
and so on.
    Your answer should have {count} points, no more and no fewer, each on a line that begins with its letter, as in \
a) or A., in the order of the alphabet.
    Use letters instead of bullets: exactly {count} items, one to a line, marked in order as A. B. or a) b).
""")
def lettered_items(answer: str, count: int) -> bool:
    return [mark.lower() for mark in _marks(answer, LETTER)] == list("abcdefghi"[:count])


@constraint(Side.train, "layout brackets", count_of(2, 3, 4))
@worded("""
    Include a checklist of at least {count} lines, each of which begins with "[ ]" or "- [ ]".
    Write {count} or more lines as things to tick off, each with an empty box "[ ]" or "- [ ]" before the text.
    At least {count} lines must start with "- [ ]" or just "[ ]", followed by some text.
    Give a list to tick off: "[ ]" or "- [ ]" at the start of each item, and no fewer than {count} items.
    Your answer should have an empty tick box, written "[ ]" or "- [ ]", at the start of {count} lines or more, \
with text after it.
""")
def checklist(answer: str, count: int) -> bool:
    return sum(BOX.match(line) is not None for line in answer.splitlines()) >= count


@constraint(Side.validation, "layout")
@worded("""
    Start with one line of prose, a sentence of at least four words, and then give a bullet list of at least two items.
    Begin with a sentence of four words or more on a line of its own. Two or more bullet points follow right after it.
    First write a single line that introduces the list in a sentence of at least four words, and under it put two or \
more bullets.
    Open with an introductory sentence (four words or more, all on one line), directly followed by a bullet list of \
two or more items.
    The first line must be a sentence of at least four words; from the second line on, give at least two bullet points.
""")
def list_with_intro(answer: str) -> bool:
    intro, *below = lines(answer)
    return _prose(intro) and len(below) > 1 and BULLET.match(below[0]) is not None and len(_items(answer, BULLET)) >= 2


@constraint(Side.test, "layout length", count_of(5, 6, 8, 10))
@worded("""
    Include a bullet or numbered list of at least three items, none of them longer than {count} words.
    Give three or more bullet points or numbered items, and keep each item to {count} words or fewer.
    Your answer must have a list with bullets or numbers. It has at least three items, and each has at most {count} \
words.
    Put at least three things in a list, bulleted or numbered, using no more than {count} words for each item.
    Write a list of three items or more, marked with bullets or numbers, in which every item is {count} words long \
at most.
""")
def items_short(answer: str, count: int) -> bool:
    items = _items(answer)
    return len(items) >= 3 and all(len(words(item)) <= count for item in items)


@constraint(Side.aside, "layout")
@worded("""
    Include a bullet list of at least three items, in alphabetical order of their first words.
    Give three or more bullet points and sort them from A to Z by the first word of each.
    Your answer must have a bulleted list of three items or more, sorted alphabetically by first word.
    Write at least three bullets whose first words are in alphabetical order.
    Arrange your points as a list with bullets, three at the least, so that the first words of the items run in the \
order of the alphabet.
""")
def items_sorted(answer: str) -> bool:
    # letters with accents sort like plain letters
    heads = [normalize("NFKD", "".join(lower_words(item)[:1])).strip("_") for item in _items(answer, BULLET)]
    return len(heads) >= 3 and heads == sorted(heads)


@constraint(Side.test, "layout questions")
@worded("""
    Include a bullet or numbered list of at least two items, each of which ends with a question mark.
    Give a list, with bullets or numbers, of two or more questions; every item must end in a question mark.
    Every item of your list must end with "?". Mark the items with bullets or numbers and write at least two of them.
    Write two or more list items, bulleted or numbered, all of them questions with a question mark at the end.
    Your answer must have a list of at least two bulleted or numbered items, and no item may end in anything but a \
question mark.
""")
def items_as_questions(answer: str) -> bool:
    items = _items(answer)
    return len(items) >= 2 and all(item.rstrip(" \"'”’»*_").endswith("?") for item in items)


@constraint(Side.test, "layout colons")
@worded("""
    Include a bullet or numbered list of at least two items, each made of a name of one to five words, a colon and \
an explanation.
    Give two or more list items, with bullets or numbers, all in the form "Name: explanation". The name has five \
words at most.
    Every item of your list must have the form "Name: explanation", with a name of no more than five words. Use \
bullets or numbers, and at least two items.
    Write a list, bulleted or numbered, of two items or more. Each begins with a name (five words at most), then a \
colon, then what explains it.
    Your answer must have a list of at least two bulleted or numbered items; in each, up to five words name the \
thing, a colon follows, and an explanation ends it.
""")
def items_with_colon(answer: str) -> bool:
    items = _items(answer)
    parts = [re.match(r"([^:]+):(?!\d)(.+)", item) for item in items]
    return len(items) >= 2 and all(part and 1 <= len(words(part[1])) <= 5 and words(part[2]) for part in parts)


@constraint(Side.aside, "layout")
@worded("""
    Include a bullet or numbered list of at least two items, and after it finish with a closing paragraph of prose: \
one line with a full sentence of at least four words.
    Give two or more bullet points or numbered items. The last line, below the list, must be a closing paragraph in \
full sentences, of four words or more.
    After a list of at least two bulleted or numbered items, end with a paragraph in full sentences that is no list \
item, has four words or more and stands as the last line.
    Write a list, with bullets or numbers and two items or more, then close with a paragraph of prose on the last \
line, at least four words in whole sentences.
    Let a closing paragraph of prose come last, after a bulleted or numbered list of at least two items. It is one \
line of full sentences, four words or longer, that is not part of the list.
""")
def list_then_paragraph(answer: str) -> bool:
    last = answer.splitlines()[-1]
    return len(_items(answer)) >= 2 and not last[0].isspace() and _prose(last)


def _items(answer: str, marker: re.Pattern[str] = ITEM) -> list[str]:
    """Return the texts of list items, each with the indented lines below it. A rule such as `* * *` is not an item."""
    items: list[str] = []
    for line in answer.splitlines():
        if mark := marker.match(line):
            items.append(line[mark.end() :].strip())
        elif items and line[:1].isspace() and line.strip():
            items[-1] += " " + line.strip()
    return [item for item in items if item.strip("-*_ ")]


def _marks(answer: str, marker: re.Pattern[str]) -> list[str]:
    return [mark[1] for line in answer.splitlines() if (mark := marker.match(line))]


def _prose(line: str) -> bool:
    """Return whether a line has four words, ends like a sentence or with a colon, and is not an item or a heading."""
    ending = re.split(r"\w", line)[-1]
    plain = not ITEM.match(line) and not LETTER.match(line) and line[0] not in "#>|["
    return plain and len(words(line)) >= 4 and any(mark in ending for mark in ".!?…:")
