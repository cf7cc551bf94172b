"""Constraints on lengths, on lists, and on headings, lines and paragraphs."""

import re
from collections.abc import Callable

from stages.store.text_units import (
    BULLET,
    lines,
    paragraphs,
    sentences,
    unmarked,
    words,
)
from stages.tasks.constraint import Draw

DASH = re.compile(r"\s*[-*]\s+(?=\S)")
# a marker, also in bold, in brackets or after a bullet
MARKED = r"\s*(?:[-*•+]\s+)?[*_]*\(?({})[.)][*_]*\s+(?=\S)"
NUMBERED = re.compile(MARKED.format(r"\d{1,3}"))
LETTER = re.compile(MARKED.format("[A-Za-z]"))
ITEM = re.compile(f"{NUMBERED.pattern}|{BULLET.pattern}")
BOX = re.compile(r"\s*(?:[-*•+]\s+)?\[ \]\s*\S")
CHECKS: dict[str, Callable[..., bool]] = {
    "words_at_most": lambda answer, count: len(words(answer)) <= count,
    "words_at_least": lambda answer, count: len(words(answer)) >= count,
    "sentences_exactly": lambda answer, count: len(sentences(answer)) == count,
    "paragraphs_exactly": lambda answer, count: len(_with_words(paragraphs(answer))) == count,
    "words_between": lambda answer, low, high: low <= len(words(answer)) <= high,
    "sentences_at_most": lambda answer, count: 0 < len(sentences(answer)) <= count,
    "bullets_exactly": lambda answer, count: (
        len(_items(answer, BULLET)) == len(_items(answer, DASH)) == count
    ),
    "numbered_exactly": lambda answer, count: (
        [*map(int, _marks(answer, NUMBERED))] == [*range(1, count + 1)]
    ),
    "lettered_items": lambda answer, count: (
        "".join(_marks(answer, LETTER)).lower() == "abcdefghi"[:count]
    ),
    "checklist": lambda answer, count: (
        sum(BOX.match(line) is not None for line in answer.splitlines()) >= count
    ),
    "headings": lambda answer, count: (
        len(re.findall(r"(?m)^ {0,3}#{1,3}[ \t]+[^\s#]", answer)) >= count
    ),
    "titled_sections": lambda answer, count: (
        _numbered(answer, r"(?i)section\s+(\d+)\s*(?:[:.(–—-].*)?$") == count
    ),
    "steps_labelled": lambda answer, count: _numbered(answer, r"(?i)step\s+(\d+)\s*:") >= count,
    "day_headings": lambda answer, count: _numbered(answer, r"(?i)day\s+(\d+)\b") >= count,
}
DRAWS: dict[str, Draw] = {
    "words_between": lambda rng, request: {
        "low": (low := rng.choice([20, 30, 40, 50])),
        "high": low + rng.choice([15, 20, 30]),
    },
    "repeat_request": lambda rng, request: {"text": request},
}


def sentence_words_at_most(answer: str, count: int) -> bool:
    answer_sentences = sentences(answer)
    return len(answer_sentences) >= 2 and all(
        len(words(sentence)) <= count for sentence in answer_sentences
    )


def _with_words(parts: list[str]) -> list[str]:
    """Return the parts that contain words, without rules such as `---`."""
    return [part for part in parts if words(part)]


def list_with_intro(answer: str) -> bool:
    intro, *below = lines(answer)
    return (
        _prose(intro)
        and len(below) > 1
        and BULLET.match(below[0]) is not None
        and len(_items(answer, BULLET)) >= 2
    )


def items_short(answer: str, count: int) -> bool:
    items = _items(answer)
    return len(items) >= 3 and all(len(words(item)) <= count for item in items)


def items_as_questions(answer: str) -> bool:
    items = _items(answer)
    return len(items) >= 2 and all(item.rstrip(" \"'”’»*_").endswith("?") for item in items)


def items_with_colon(answer: str) -> bool:
    items = _items(answer)
    parts = [re.match(r"([^:]+):(?!\d)(.+)", item) for item in items]
    return len(items) >= 2 and all(
        part and 1 <= len(words(part[1])) <= 5 and words(part[2]) for part in parts
    )


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


def separated_by_rule(answer: str, count: int, mark: str) -> bool:
    parts = re.split(rf"(?m)^[ \t]*{re.escape(mark)}[ \t]*$", answer)
    return len(parts) == count and all(re.search(r"[^\W_]", part) for part in parts)


def repeat_request(answer: str, text: str) -> bool:
    request_pattern = r"\s+".join(re.escape(word) for word in text.split())
    pattern = rf"[\"'“‘*_#>\s]*{request_pattern}[\"'”’*_]*[ \t]*\n.*[^\W_]"
    return re.match(pattern, answer, re.IGNORECASE | re.DOTALL) is not None


def question_answer(answer: str, count: int) -> bool:
    matches = [re.match(r"(?i)([qa]):.*[^\W_]", unmarked(line)) for line in lines(answer)]
    labels = "".join(match[1].lower() if match else "-" for match in matches)
    return labels.count("qa") == labels.count("q") >= count


def pros_and_cons(answer: str) -> bool:
    answer_lines = [unmarked(line).lower() for line in lines(answer) if re.search(r"[^\W_]", line)]
    first = answer_lines.index("pros:") if "pros:" in answer_lines else len(answer_lines)
    # at least one line between both labels, and one after them
    return "cons:" in answer_lines[first + 2 : -1]


def title_in_angles(answer: str) -> bool:
    answer_lines = [unmarked(line) for line in lines(answer) if re.search(r"[^\W_]", line)]
    return len(answer_lines) >= 2 and any(
        re.fullmatch(r"<<[^<>]+>>", line) for line in answer_lines
    )


def _numbered(answer: str, label: str) -> int:
    """Return how many parts begin with a line that matches the label, whose group is the part's number. Return 0
    unless the numbers are 1, 2, 3, … and text follows each label."""
    numbers, texts = list[str](), list[str]()
    for line in map(unmarked, answer.splitlines()):
        if match := re.match(label, line):
            numbers.append(match[1])
            texts.append(line[match.end() :])
        elif texts:
            texts[-1] += line
    counted = numbers == [str(i + 1) for i in range(len(numbers))]
    return len(numbers) if counted and all(re.search(r"[^\W_]", text) for text in texts) else 0
