"""What an examination finds: what was seen, how sure that is, and what would show the same.

A cause is stated only where the files say it. Everything else is a list of causes, the likeliest first, with the one
command that tells them apart."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from stages.config.installation import read_beside
from stages.evaluation import claims
from stages.evaluation.claims import Claim, Word
from stages.evaluation.intervals import Interval

TEXTS: dict[str, Any] = read_beside(__file__)
OF_FILES = "the files"  # the scope of what files say

State = StrEnum("State", "fault difference nothing not_enough")


class Verdict(StrEnum):
    """What all checks together say, as it is published."""

    faults = "faults"
    none = "none"
    not_enough = "not_enough"


VERDICTS = {
    Word.fault: Verdict.faults,
    Word.sound: Verdict.none,
    Word.too_few: Verdict.not_enough,
}


class NotEnough(Exception):
    """Raised by a check that cannot say anything; its text says why, and what would let it."""


@dataclass(frozen=True)
class Finding:
    """A fault, or a difference that is by itself no fault. `claim`: its word, what was seen with the start's figure, and
    by how many answers or pairs. `interval`: of the figure; None if it has no error. `causes`: what would show the same,
    the likeliest first; of one cause the files say so. `apart`: the command that tells the causes apart. `key`: of a
    difference of both folders, its key."""

    name: str
    claim: Claim
    interval: Interval | None
    causes: Sequence[str]
    apart: str
    key: str = ""

    def about(self, key: str) -> "Finding":
        """Return the finding as one about a key of the folders."""
        return replace(self, key=key)

    @property
    def title(self) -> str:
        """The name under which it is listed: its key, if it is about one."""
        return self.key or self.name

    @property
    def seen(self) -> str:
        return self.claim.figure

    @property
    def is_fault(self) -> bool:
        return self.claim.word is not Word.differs

    @property
    def certain(self) -> bool:
        return self.claim.word is Word.certain_fault

    @property
    def clause(self) -> str:
        """Return the finding as one clause: what was seen and, unless the files say it, what would show the same."""
        if not self.causes:
            return self.seen
        return f"{self.seen}. The same would show: {'; '.join(self.causes)}. To tell: {self.apart}"

    def as_record(self) -> dict[str, Any]:
        """Return the finding as it is published: the claim, and its parts by names of their own."""
        return {
            **asdict(self),
            "word": self.claim.says("finding"),
            "seen": self.seen,
            "is_fault": self.is_fault,
            "certain": self.certain,
        }


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
    def claim(self) -> Claim:
        """The claim of all checks together."""
        reason = ""
        unanswered = self.without_answer
        if unanswered:
            first = unanswered[0]
            count = f"{len(unanswered)} of {len(self.checks)} checks cannot say"
            reason = f"{count}, as {first.name}: {first.reason}"
        return claims.examination(len(self.faults), len(self.checks), reason)

    @property
    def verdict(self) -> Verdict:
        return VERDICTS[self.claim.word]

    def sentence(self, after: str, before: str) -> str:
        """Return the verdict as one sentence on the model `after` beside the model `before`."""
        sentence = self.claim.says("examination", after=after, before=before)
        worst_first = self.faults or self.findings
        if self.verdict is Verdict.not_enough or not worst_first:
            return sentence
        return f"{sentence}: {worst_first[0].seen}"

    def as_record(self) -> dict[str, Any]:
        """Return the verdict, the findings and the checks as they are published."""
        return {
            "verdict": str(self.verdict),
            "claim": asdict(self.claim),
            "findings": [finding.as_record() for finding in self.findings],
            "checks": [asdict(check) for check in self.checks],
            "cannot_tell": TEXTS["cannot_tell"],
        }
