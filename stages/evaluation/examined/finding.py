"""What an examination finds: what was seen, how sure that is, and what would show the same.

A cause is stated only where the files say it. Everything else is a list of causes, the likeliest first, with the one
command that tells them apart."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from stages.config.installation import read_beside
from stages.evaluation.intervals import Interval

TEXTS: dict[str, Any] = read_beside(__file__)
SURE = 0.999  # the confidence of a measured figure that is called certain

Verdict = StrEnum("Verdict", "faults none not_enough")
State = StrEnum("State", "fault difference nothing not_enough")


class NotEnough(Exception):
    """Raised by a check that cannot say anything; its text says why, and what would let it."""


@dataclass(frozen=True)
class Finding:
    """A fault, or a difference that is by itself no fault. `seen`: what was seen, with the start's figure. `certain`: the
    files say so, or the figure is beyond chance at SURE. `interval`: of the figure; None if it has no error. `causes`:
    what would show the same, the likeliest first; of one cause the files say so. `apart`: the command that tells the
    causes apart."""

    name: str
    seen: str
    is_fault: bool
    certain: bool
    interval: Interval | None
    causes: Sequence[str]
    apart: str

    @property
    def clause(self) -> str:
        """Return the finding as one clause: what was seen and, unless the files say it, what would show the same."""
        if not self.causes:
            return self.seen
        return f"{self.seen}. The same would show: {'; '.join(self.causes)}. To tell: {self.apart}"


@dataclass(frozen=True)
class CheckRecord:
    """A check: what it compares, what it cannot see, and what came of it. `reason`: why it could not say anything."""

    name: str
    compares: str
    blind: str
    state: State
    reason: str = ""


@dataclass(frozen=True)
class Examination:
    """All findings of an examination, and its checks."""

    findings: Sequence[Finding]
    checks: Sequence[CheckRecord]

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_fault]

    @property
    def without_answer(self) -> list[CheckRecord]:
        return [check for check in self.checks if check.state is State.not_enough]

    @property
    def verdict(self) -> Verdict:
        if self.faults:
            return Verdict.faults
        return Verdict.not_enough if self.without_answer else Verdict.none

    def sentence(self, after: str, before: str) -> str:
        """Return the verdict as one sentence on the model `after` beside the model `before`."""
        first = self.faults or self.findings
        shown = f": {first[0].seen}" if first else ""
        if self.verdict is Verdict.faults:
            count = len(self.faults)
            noun = "fault was" if count == 1 else "faults were"
            return f"{count} {noun} found in {after} beside {before}{shown}"
        count = len(self.checks)
        if self.verdict is Verdict.none:
            return f"None of {count} checks found a fault in {after} beside {before}{shown}"
        unanswered = self.without_answer
        reason = f"{len(unanswered)} of {count} checks cannot say, as {unanswered[0].name}: {unanswered[0].reason}"
        return f"Not enough to say if {after} has a fault: {reason}"

    def as_record(self) -> dict[str, Any]:
        """Return the verdict, the findings and the checks as they are published."""
        return {
            "verdict": str(self.verdict),
            "findings": [asdict(finding) for finding in self.findings],
            "checks": [asdict(check) for check in self.checks],
            "cannot_tell": TEXTS["cannot_tell"],
        }
