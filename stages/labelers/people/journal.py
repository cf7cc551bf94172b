"""What one person said, in a file of that name that is only ever appended to: `outputs/cache/calls/people/ann.jsonl`.

A line is on the disk before the page hears that it was saved. What is taken back gets a line of its own.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stages.store import json_log
from stages.store.regular import open_regular
from stages.store.sealed_json import sync

LONGEST = 1e7  # seconds for which a question may have been shown


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
    def said(self) -> tuple[str | None, tuple[str, ...], str]:
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
    timed = isinstance(answer.seconds, int | float) and 0 <= answer.seconds < LONGEST
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
