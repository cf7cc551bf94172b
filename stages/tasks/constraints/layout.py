"""Constraints on headings, sections, steps, turns and paragraphs."""

import re
from collections.abc import Callable
from itertools import pairwise, takewhile

from stages.store.text_units import BULLET, NUMBER, lines, paragraphs, sentences
from stages.tasks.constraint import Draw
from stages.tasks.words import NAMES

CHECKS: dict[str, Callable[..., bool]] = {
    "headings": lambda answer, count: len(re.findall(r"(?m)^ {0,3}#{1,3}[ \t]+[^\s#]", answer)) >= count,
    "titled_sections": lambda answer, count: _numbered(answer, r"(?i)section\s+(\d+)\s*(?:[:.(–—-].*)?$") == count,
    "steps_labelled": lambda answer, count: _numbered(answer, r"(?i)step\s+(\d+)\s*:") >= count,
    "day_headings": lambda answer, count: _numbered(answer, r"(?i)day\s+(\d+)\b") >= count,
}
DRAWS: dict[str, Draw] = {
    "repeat_request": lambda rng, request: {"text": request},
    "dialogue": lambda rng, request: {
        "count": rng.choice([3, 4]),
        **dict(zip(("one", "other"), rng.sample(NAMES, 2), strict=True)),
    },
}


def separated_by_rule(answer: str, count: int, mark: str) -> bool:
    parts = re.split(rf"(?m)^[ \t]*{re.escape(mark)}[ \t]*$", answer)
    return len(parts) == count and all(re.search(r"[^\W_]", part) for part in parts)


def repeat_request(answer: str, text: str) -> bool:
    request_pattern = r"\s+".join(re.escape(word) for word in text.split())
    pattern = rf"[\"'“‘*_#>\s]*{request_pattern}[\"'”’*_]*[ \t]*\n.*[^\W_]"
    return re.match(pattern, answer, re.IGNORECASE | re.DOTALL) is not None


def question_answer(answer: str, count: int) -> bool:
    matches = [re.match(r"(?i)([qa]):.*[^\W_]", _plain(line)) for line in lines(answer)]
    labels = "".join(match[1].lower() if match else "-" for match in matches)
    return labels.count("qa") == labels.count("q") >= count


def dialogue(answer: str, count: int, one: str, other: str) -> bool:
    turn = rf"(?i)({re.escape(one)}|{re.escape(other)}):.*[^\W_]"
    matches = [re.match(turn, _plain(line)) for line in lines(answer)]
    names = [match[1].lower() for match in matches if match]
    return len(names) == len(matches) >= count and all(name != after for name, after in pairwise(names))


def pros_and_cons(answer: str) -> bool:
    answer_lines = [_plain(line).lower() for line in lines(answer) if re.search(r"[^\W_]", line)]
    first = answer_lines.index("pros:") if "pros:" in answer_lines else len(answer_lines)
    return "cons:" in answer_lines[first + 2 : -1]  # at least one line between both labels, and one after them


def title_in_angles(answer: str) -> bool:
    answer_lines = [_plain(line) for line in lines(answer) if re.search(r"[^\W_]", line)]
    return len(answer_lines) >= 2 and any(re.fullmatch(r"<<[^<>]+>>", line) for line in answer_lines)


def table_of_contents(answer: str) -> bool:
    first, *rest = lines(answer)
    entries = list(takewhile(lambda line: BULLET.match(line) or NUMBER.match(line), rest))
    after = " ".join(rest[len(entries) :])
    return _plain(first).lower() == "contents:" and len(entries) >= 2 and re.search(r"[^\W_]", after) is not None


def blank_line_between(answer: str) -> bool:
    counts = [len(sentences(part)) for part in paragraphs(answer)]
    return len(counts) >= 3 and set(counts) == {1}


def _plain(line: str) -> str:
    """Return the line without Markdown's marks for headings, emphasis and code."""
    return re.sub(r"[*_#`]", "", line).strip()


def _numbered(answer: str, label: str) -> int:
    """Return how many parts begin with a line that matches the label, whose group is the part's number. Return 0
    unless the numbers are 1, 2, 3, … and text follows each label."""
    numbers: list[str] = []
    texts: list[str] = []
    for line in map(_plain, answer.splitlines()):
        if match := re.match(label, line):
            numbers.append(match[1])
            texts.append(line[match.end() :])
        elif texts:
            texts[-1] += line
    counted = numbers == [str(i + 1) for i in range(len(numbers))]
    return len(numbers) if counted and all(re.search(r"[^\W_]", text) for text in texts) else 0
