"""People's answers in journals, and the state of the page, which is rebuilt from the journals at every start.

A journal is an append-only file for each person: `outputs/cache/calls/people/ann.jsonl`. A line is on disk before the
page reports it as saved. An undone answer gets a further line."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from stages.evaluation.agreement import alpha, coincidences
from stages.labelers.questions import SKIP, VERDICTS, Question
from stages.store import json_log
from stages.store.safe_files import open_regular
from stages.store.sealed_json import sync

LONGEST_SHOWN = 1e7  # seconds; a longer time on the page counts as unknown
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")  # a person's name, which is also the name of a file
NAME_RULE = "a name is up to 40 of a-z, 0-9, _ and -, and begins with a letter or a digit"
LONGEST_COMMENT = 2000  # characters


@dataclass(frozen=True)
class Answer:
    """A person's verdict on a question, one of the question's words; None withdraws an earlier one. `order` has the
    letters as the person saw the answers, from left to right."""

    question: str
    annotator: str
    verdict: str | None
    reasons: tuple[str, ...] = ()
    comment: str = ""
    order: str = ""
    seconds: float | None = None  # time on the page
    at: str = ""  # date and time, ISO 8601

    @property
    def content(self) -> tuple[str | None, tuple[str, ...], str]:
        return self.verdict, self.reasons, self.comment


def parse_answer(row: Any) -> Answer:
    """Return the answer in a row of JSON. Impossible `seconds` become None.

    Raises:
        ValueError, TypeError, LookupError: if a field is missing, has another type, or has a lone surrogate."""
    answer = Answer(**row | {"reasons": tuple(row["reasons"])})
    texts = [
        answer.question,
        answer.annotator,
        answer.comment,
        answer.order,
        answer.at,
        *answer.reasons,
    ]
    if not all(isinstance(text, str) for text in [*texts, answer.verdict or ""]):
        raise TypeError("a field that must be text has another type")
    json.dumps([*texts, answer.verdict], ensure_ascii=False).encode()
    timed = isinstance(answer.seconds, int | float) and 0 <= answer.seconds < LONGEST_SHOWN
    return answer if timed else replace(answer, seconds=None)


@dataclass
class Journal:
    """The file with one person's answers. Truncated or damaged lines are set aside with a warning."""

    path: Path

    def read(self) -> Iterator[Answer]:
        """Return the answers, oldest first."""
        lines = json_log.read(self.path, parse_answer, "Their questions are asked again.")
        return (replace(line.value, annotator=self.path.stem) for line in lines)

    def append(self, answer: Answer) -> None:
        """Append an answer durably."""
        fresh = not self.path.exists()
        with os.fdopen(open_regular(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "rb") as file:
            json_log.append(file.fileno(), json_log.sealed(asdict(answer)))
            os.fsync(file.fileno())
        if fresh:
            sync(self.path.parent)


class Refused(Exception):
    """Raised for a request or an answer that is rejected, with its HTTP status (RFC 9110)."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Session:
    """The questions with every person's answers. A question is complete when as many people answered as it needs; a
    skip counts, so that a question that nobody can answer does not block the run."""

    def __init__(
        self, questions: list[Question], reasons: list[str], folder: Path, block: str = "label"
    ):
        """`block`: the block of the configuration with the settings of the people, for messages."""
        self.questions, self.reasons, self.folder = {q.id: q for q in questions}, reasons, folder
        self.block = block
        self.answers = dict[str, dict[str, Answer]]()
        self.answer_counts = Counter[str]()  # answers to each question
        self.showing = dict[str, str]()  # the question on each person's page
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.jsonl")):
            if NAME.fullmatch(path.stem):
                for answer in self.journal(path.stem).read():
                    self.apply_answer(answer)

    def journal(self, annotator: str) -> Journal:
        return Journal(self.folder / f"{annotator}.jsonl")

    def apply_answer(self, answer: Answer) -> None:
        """Make an answer the annotator's current one. Ignore answers to other runs' questions, or other verdicts."""
        question = self.questions.get(answer.question)
        if question and answer.verdict in (None, *question.words):
            answers = self.answers.setdefault(answer.annotator, {})
            self.answer_counts[answer.question] -= answers.pop(answer.question, None) is not None
            if answer.verdict is not None:
                answers[answer.question] = answer
                self.answer_counts[answer.question] += 1

    def open_slots(self, question: Question) -> int:
        """Return how many more people must answer a question; negative if more answered than needed."""
        return question.needed - self.answer_counts[question.id]

    @property
    def judged(self) -> int:
        return sum(self.open_slots(q) <= 0 for q in self.questions.values())

    @property
    def complete(self) -> bool:
        return self.judged == len(self.questions)

    def next(self, annotator: str) -> Question | None:
        """Return the question to show to a person: after a reload the same one, else rather one that nobody sees."""
        answered = self.answers.get(annotator, {})
        waiting = [
            q for q in self.questions.values() if q.id not in answered and self.open_slots(q) > 0
        ]
        current = self.showing.pop(annotator, None)
        on_pages = Counter(self.showing.values())
        question = min(
            waiting,
            key=lambda q: (q.id != current, on_pages[q.id] >= self.open_slots(q)),
            default=None,
        )
        if question:
            self.showing[annotator] = question.id
        return question

    def save(self, answer: Answer) -> bool:
        """Save an answer durably and return True; return False if the same answer is already stored.
        Raise Refused if the answer is invalid, or contradicts the person's stored answer."""
        self.validate_answer(answer)
        earlier = self.answers.get(answer.annotator, {}).get(answer.question)
        if earlier and earlier.content != answer.content:
            raise Refused(
                409,
                f"{answer.annotator} already answered {earlier.verdict!r} here. Press Undo first",
            )
        if not earlier:
            self.journal(answer.annotator).append(answer)
            self.apply_answer(answer)
        return not earlier

    def validate_answer(self, answer: Answer) -> None:
        """Raise Refused if an answer is not a valid answer to a question of this run."""
        if not NAME.fullmatch(answer.annotator):
            raise Refused(400, NAME_RULE)
        if answer.question not in self.questions:
            raise Refused(404, "this run does not have the question")
        words = self.questions[answer.question].words
        if answer.verdict not in words:
            raise Refused(
                400, f"a verdict is one of {', '.join(words)}, and not {answer.verdict!r}"
            )
        if unknown := [*filter(lambda r: r not in self.reasons, answer.reasons)]:
            raise Refused(400, f"{unknown[0]!r} is not in {self.block}.reasons={self.reasons}")
        if len({*answer.reasons}) < len(answer.reasons) or len(answer.comment) > LONGEST_COMMENT:
            raise Refused(
                400,
                f"a reason may occur once, and a comment may have at most {LONGEST_COMMENT} characters",
            )

    def undo(self, annotator: str, question: str) -> None:
        """Withdraw a person's answer and show its question again. Without an answer, nothing happens."""
        if question not in self.questions:
            raise Refused(404, "this run does not have the question")
        if answer := self.answers.get(annotator, {}).get(question):
            retraction = replace(answer, verdict=None, reasons=(), comment="", seconds=None)
            self.journal(annotator).append(retraction)
            self.apply_answer(retraction)
            self.showing[annotator] = question

    def agreement(self) -> dict[str, Any]:
        """Return Krippendorff's α of questions with several verdicts, and the share of equal pairs, without skips."""
        verdicts = list[list[int]]()
        for question in self.questions:
            words = [
                answers[question].verdict
                for answers in self.answers.values()
                if question in answers
            ]
            verdicts.append([VERDICTS.index(str(v)) for v in words if v != SKIP])
        verdicts = [each for each in verdicts if len(each) > 1]
        if not verdicts:
            return {"questions": 0, "alpha": None, "same": None}
        counts = coincidences(verdicts, len(VERDICTS))
        mean_alpha, same = float(alpha(counts)), float(counts.trace() / counts.sum())
        # undefined if all verdicts are equal
        rounded = round(mean_alpha, 4) if isfinite(mean_alpha) else None
        return {"questions": len(verdicts), "alpha": rounded, "same": round(same, 4)}

    def figures(self) -> dict[str, Any]:
        """Return counts of the answers and verdicts for the node's metrics."""
        answers = [
            answer for by_question in self.answers.values() for answer in by_question.values()
        ]
        preferences = [
            answer for answer in answers if len(str(answer.verdict)) == 1 and answer.order
        ]
        first_shown = sum(answer.order[0] == answer.verdict for answer in preferences)
        return {
            "questions": len(self.questions),
            "answers": {
                name: len(answers) for name, answers in sorted(self.answers.items()) if answers
            },
            "verdicts": dict(sorted(Counter(str(answer.verdict) for answer in answers).items())),
            "first_shown_preferred": first_shown / len(preferences) if preferences else None,
            "agreement": self.agreement(),
        }
