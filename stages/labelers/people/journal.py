"""What one person said, in a file of that name that is only ever appended to: `outputs/cache/calls/people/ann.jsonl`.

A line is on the disk before the page hears that it was saved. What is taken back gets a line of its own.
"""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stages.store.kept import WRONG_SHAPE, sync
from stages.store.regular import open_regular

log = logging.getLogger(__name__)


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


@dataclass
class Journal:
    """The file of one person. A line that a kill cut off, or that a hand damaged, is passed over and told."""

    path: Path
    torn: bool = field(default=False, init=False)  # its last line has no end

    @property
    def annotator(self) -> str:
        return self.path.stem

    def read(self) -> Iterator[Answer]:
        """What was said, oldest first."""
        line, wrong = b"\n", 0
        with os.fdopen(open_regular(self.path), "rb") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    yield Answer(**row | {"annotator": self.annotator, "reasons": tuple(row["reasons"])})
                except WRONG_SHAPE:
                    wrong += 1
        self.torn = not line.endswith(b"\n")
        if wrong:
            log.warning("warning: %s: %d lines cannot be read; what they said is asked again.", self.path, wrong)

    def append(self, answer: Answer) -> None:
        """Durable when this returns."""
        line = json.dumps(asdict(answer)).encode() + b"\n"
        left = b"\n" + line if self.torn else line
        fresh = not self.path.exists()
        self.torn = True  # until all of it is there
        descriptor = open_regular(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.torn = False
        if fresh:
            sync(self.path.parent)
