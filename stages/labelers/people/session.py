"""What people say: journals of their answers, and the state of the page, made again from these at every start.

A journal is a file that is only ever appended to: `outputs/cache/calls/people/ann.jsonl`. A line is on the disk before
the page hears that it was saved. What is taken back gets a line of its own.
"""

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
from stages.labelers.people.questions import SKIP, VERDICTS, Question
from stages.store import json_log
from stages.store.safe_files import open_regular
from stages.store.sealed_json import sync

LONGEST_SHOWN = 1e7  # seconds for which a question may have been shown
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")  # of a person, and of a file
LONGEST_COMMENT = 2000  # characters


@dataclass(frozen=True)
class Answer:
    """A person's word on a question, one of the question's; None takes back what they said before. `order` is how they
    saw the answers, from left to right."""

    question: str
    annotator: str
    verdict: str | None
    reasons: tuple[str, ...] = ()
    comment: str = ""
    order: str = ""
    seconds: float | None = None  # for which the question was shown
    at: str = ""  # the time, as ISO 8601

    @property
    def content(self) -> tuple[str | None, tuple[str, ...], str]:
        return self.verdict, self.reasons, self.comment


def answer_in(row: Any) -> Answer:
    """Return the answer in a row, without seconds that cannot be.

    Raises:
        ValueError, TypeError, LookupError: where there is none, or half a character in it.
    """
    answer = Answer(**row | {"reasons": tuple(row["reasons"])})
    texts = [answer.question, answer.annotator, answer.comment, answer.order, answer.at, *answer.reasons]
    if not all(isinstance(text, str) for text in [*texts, answer.verdict or ""]):
        raise TypeError("a text is not one")
    json.dumps([*texts, answer.verdict], ensure_ascii=False).encode()
    timed = isinstance(answer.seconds, int | float) and 0 <= answer.seconds < LONGEST_SHOWN
    return answer if timed else replace(answer, seconds=None)


@dataclass
class Journal:
    """The file of one person. A line that a kill cut off, or that a disk or a hand damaged, is set aside and told."""

    path: Path

    @property
    def annotator(self) -> str:
        return self.path.stem

    def read(self) -> Iterator[Answer]:
        """Return what was said, oldest first."""
        lines = json_log.read(self.path, answer_in, "What they said is asked again.")
        return (replace(line.value, annotator=self.annotator) for line in lines)

    def append(self, answer: Answer) -> None:
        """Write an answer, which is durable when this returns."""
        fresh = not self.path.exists()
        descriptor = open_regular(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            json_log.append(descriptor, json_log.sealed(asdict(answer)))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if fresh:
            sync(self.path.parent)


class Refused(Exception):
    """What cannot be taken, with the HTTP status that says why (RFC 9110)."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Session:
    """Questions, and what every person said of them. Each is asked of as many people as it needs; a skip counts, so
    that a question that nobody can answer holds nothing up."""

    def __init__(self, questions: list[Question], reasons: list[str], folder: Path):
        self.questions, self.reasons, self.folder = {q.id: q for q in questions}, reasons, folder
        self.journals, self.answers = dict[str, Journal](), dict[str, dict[str, Answer]]()
        self.answer_counts = Counter[str]()  # how many people have judged a question
        self.showing = dict[str, str]()  # the question that everybody has before them
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.jsonl")):
            if NAME.fullmatch(path.stem):
                for answer in self.journal(path.stem).read():
                    self.apply_answer(answer)

    def journal(self, annotator: str) -> Journal:
        return self.journals.setdefault(annotator, Journal(self.folder / f"{annotator}.jsonl"))

    def apply_answer(self, answer: Answer) -> None:
        """An answer becomes the latest of its annotator's. One to another run's question, or with a word that the
        question does not know, is none of ours."""
        question = self.questions.get(answer.question)
        if question and answer.verdict in (None, *question.words):
            answers = self.answers.setdefault(answer.annotator, {})
            self.answer_counts[answer.question] -= answers.pop(answer.question, None) is not None
            if answer.verdict is not None:
                answers[answer.question] = answer
                self.answer_counts[answer.question] += 1

    def missing_answers(self, question: Question) -> int:
        """How many people are still to judge it; below 0 where more did than had to."""
        return question.needed - self.answer_counts[question.id]

    @property
    def judged(self) -> int:
        return sum(self.missing_answers(q) <= 0 for q in self.questions.values())

    @property
    def complete(self) -> bool:
        return self.judged == len(self.questions)

    def next(self, annotator: str) -> Question | None:
        """What this person is shown: after a reload the same again; else what nobody is shown, if there is any."""
        answered = self.answers.get(annotator, {})
        waiting = [q for q in self.questions.values() if q.id not in answered and self.missing_answers(q) > 0]
        current = self.showing.pop(annotator, None)
        shown_counts = Counter(self.showing.values())
        question = min(
            waiting, key=lambda q: (q.id != current, shown_counts[q.id] >= self.missing_answers(q)), default=None
        )
        if question:
            self.showing[annotator] = question.id
        return question

    def save(self, answer: Answer) -> bool:
        """Keep an answer, on the disk when this returns. The same one again is kept once, and False.

        Raises:
            Refused: where it is no answer to a question of ours, or contradicts what this person has said.
        """
        self.validate_answer(answer)
        earlier = self.answers.get(answer.annotator, {}).get(answer.question)
        if earlier and earlier.content != answer.content:
            raise Refused(409, f"{answer.annotator} has said {earlier.verdict!r} of this question: undo that first")
        if not earlier:
            self.journal(answer.annotator).append(answer)
            self.apply_answer(answer)
        return not earlier

    def validate_answer(self, answer: Answer) -> None:
        """Raise Refused for what is no answer to a question of ours."""
        if not NAME.fullmatch(answer.annotator):
            raise Refused(400, "a name is up to 40 of a-z, 0-9, _ and -, and begins with a letter or a digit")
        if answer.question not in self.questions:
            raise Refused(404, "no question of this run")
        words = self.questions[answer.question].words
        if answer.verdict not in words:
            raise Refused(400, f"a verdict is one of {', '.join(words)}, and not {answer.verdict!r}")
        if unknown := [*filter(lambda r: r not in self.reasons, answer.reasons)]:
            raise Refused(400, f"{unknown[0]!r} is no reason of label.human.reasons={self.reasons}")
        if len({*answer.reasons}) < len(answer.reasons) or len(answer.comment) > LONGEST_COMMENT:
            raise Refused(400, f"a reason is given once, and a comment has {LONGEST_COMMENT} characters at most")

    def undo(self, annotator: str, question: str) -> None:
        """Take back what was said of a question, which is then shown again. The second time there is nothing to do."""
        if question not in self.questions:
            raise Refused(404, "no question of this run")
        if answer := self.answers.get(annotator, {}).get(question):
            retraction = replace(answer, verdict=None, reasons=(), comment="", seconds=None)
            self.journal(annotator).append(retraction)
            self.apply_answer(retraction)
            self.showing[annotator] = question

    def agreement(self) -> dict[str, Any]:
        """Krippendorff's α of all who judged the same questions, and the share of pairs that agree; no skips."""
        verdicts = list[list[int]]()
        for question in self.questions:
            words = [answers[question].verdict for answers in self.answers.values() if question in answers]
            verdicts.append([VERDICTS.index(str(v)) for v in words if v != SKIP])
        verdicts = [each for each in verdicts if len(each) > 1]
        if not verdicts:
            return {"questions": 0, "alpha": None, "same": None}
        counts = coincidences(verdicts, len(VERDICTS))
        mean_alpha, same = float(alpha(counts)), float(counts.trace() / counts.sum())
        rounded = round(mean_alpha, 4) if isfinite(mean_alpha) else None  # all said the same one thing
        return {"questions": len(verdicts), "alpha": rounded, "same": round(same, 4)}

    def figures(self) -> dict[str, Any]:
        """What the answers came to: for the node's metrics."""
        answers = [answer for answers_of_person in self.answers.values() for answer in answers_of_person.values()]
        preferences = [answer for answer in answers if len(str(answer.verdict)) == 1 and answer.order]
        first_shown = sum(answer.order[0] == answer.verdict for answer in preferences)
        return {
            "questions": len(self.questions),
            "answers": {name: len(mine) for name, mine in sorted(self.answers.items()) if mine},
            "verdicts": dict(sorted(Counter(str(answer.verdict) for answer in answers).items())),
            "first_shown_preferred": first_shown / len(preferences) if preferences else None,
            "agreement": self.agreement(),
        }
