"""Who is asked what, and what was said: the state of the page, made again from the journals at every start."""

import re
from collections import Counter
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from stages.evaluation.agreement import alpha, coincidences
from stages.labelers.people.journal import Answer, Journal
from stages.labelers.people.questions import SKIP, VERDICTS, Question

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")  # of a person, and of a file
LONGEST = 2000  # characters of a comment


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
        self.journals, self.said = dict[str, Journal](), dict[str, dict[str, Answer]]()
        self.asked_of = Counter[str]()  # how many people have judged a question
        self.showing = dict[str, str]()  # the question that everybody has before them
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.jsonl")):
            if NAME.fullmatch(path.stem):
                for answer in self.journal(path.stem).read():
                    self.take(answer)

    def journal(self, annotator: str) -> Journal:
        return self.journals.setdefault(annotator, Journal(self.folder / f"{annotator}.jsonl"))

    def take(self, answer: Answer) -> None:
        """An answer becomes the latest of its annotator's. One to another run's question, or with a word that the
        question does not know, is none of ours."""
        asked = self.questions.get(answer.question)
        if asked and answer.verdict in (None, *asked.words):
            mine = self.said.setdefault(answer.annotator, {})
            self.asked_of[answer.question] -= mine.pop(answer.question, None) is not None
            if answer.verdict is not None:
                mine[answer.question] = answer
                self.asked_of[answer.question] += 1

    def lacking(self, question: Question) -> int:
        """How many people are still to judge it; below 0 where more did than had to."""
        return question.needed - self.asked_of[question.id]

    @property
    def judged(self) -> int:
        return sum(self.lacking(q) <= 0 for q in self.questions.values())

    @property
    def complete(self) -> bool:
        return self.judged == len(self.questions)

    def next(self, annotator: str) -> Question | None:
        """What this person is shown: after a reload the same again; else what others do not have before them already,
        as long as there is such a question."""
        mine = self.said.get(annotator, {})
        waiting = [q for q in self.questions.values() if q.id not in mine and self.lacking(q) > 0]
        held = self.showing.pop(annotator, None)
        others = Counter(self.showing.values())
        found = min(waiting, key=lambda q: (q.id != held, others[q.id] >= self.lacking(q)), default=None)
        if found:
            self.showing[annotator] = found.id
        return found

    def save(self, answer: Answer) -> bool:
        """Keep an answer, on the disk when this returns. The same one again is kept once, and False.

        Raises:
            Refused: where it is no answer to a question of ours, or contradicts what this person has said.
        """
        self.admit(answer)
        before = self.said.get(answer.annotator, {}).get(answer.question)
        if before and before.said != answer.said:
            raise Refused(409, f"{answer.annotator} has said {before.verdict!r} of this question: undo that first")
        if not before:
            self.journal(answer.annotator).append(answer)
            self.take(answer)
        return not before

    def admit(self, answer: Answer) -> None:
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
        if len({*answer.reasons}) < len(answer.reasons) or len(answer.comment) > LONGEST:
            raise Refused(400, f"a reason is given once, and a comment has {LONGEST} characters at most")

    def undo(self, annotator: str, question: str) -> None:
        """Take back what was said of a question, which is then shown again. The second time there is nothing to do."""
        if question not in self.questions:
            raise Refused(404, "no question of this run")
        if said := self.said.get(annotator, {}).get(question):
            gone = replace(said, verdict=None, reasons=(), comment="", seconds=None)
            self.journal(annotator).append(gone)
            self.take(gone)
            self.showing[annotator] = question

    def agreement(self) -> dict[str, Any]:
        """Krippendorff's α of all who judged the same questions, and the share of pairs of people who said the same;
        skips are no labels."""
        labels = list[list[int]]()
        for question in self.questions:
            said = [mine[question].verdict for mine in self.said.values() if question in mine]
            labels.append([VERDICTS.index(str(v)) for v in said if v != SKIP])
        labels = [each for each in labels if len(each) > 1]
        if not labels:
            return {"questions": 0, "alpha": None, "same": None}
        counts = coincidences(labels, len(VERDICTS))
        found, same = float(alpha(counts)), float(counts.trace() / counts.sum())
        told = round(found, 4) if isfinite(found) else None  # all said the same one thing
        return {"questions": len(labels), "alpha": told, "same": round(same, 4)}

    def figures(self) -> dict[str, Any]:
        """What the answers came to: for the node's metrics."""
        said = [answer for mine in self.said.values() for answer in mine.values()]
        chosen = [answer for answer in said if len(str(answer.verdict)) == 1 and answer.order]
        first = sum(answer.order[0] == answer.verdict for answer in chosen)
        return {
            "questions": len(self.questions),
            "answers": {name: len(mine) for name, mine in sorted(self.said.items()) if mine},
            "verdicts": dict(sorted(Counter(str(answer.verdict) for answer in said).items())),
            "first_shown_preferred": first / len(chosen) if chosen else None,
            "agreement": self.agreement(),
        }
