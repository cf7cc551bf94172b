"""Questions for people: answers to a prompt side by side, drawn by hashes, without the models that wrote them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stages.config.blocks.labels import HumanPage
from stages.store.records import Candidate, Example, Judgement, content_id
from stages.store.workspace import StageDir

LETTERS = "abcdef"  # names of the answers, in the order of the question
TIE, BAD, SKIP = "tie", "bad", "skip"  # equally good; all bad; cannot say
VERDICTS = (*LETTERS, TIE, BAD)  # verdicts that count for agreement


@dataclass(frozen=True)
class Question:
    """Different answers to a prompt (the first is `a`), and the number of people who shall judge them (`needed`). The
    id is a hash of all that a person sees, so that nobody gets the same question twice, in any node. The answers are
    ordered by hashes of their texts: random, and the same in every node."""

    id: str
    prompt: Example
    candidates: tuple[Candidate, ...]
    needed: int = 1

    @property
    def letters(self) -> str:
        return LETTERS[: len(self.candidates)]

    @property
    def words(self) -> tuple[str, ...]:
        """All verdicts that a person may give on the question."""
        return (*self.letters, TIE, BAD, SKIP)

    def order(self, annotator: str) -> str:
        """Return the letters in the order in which this person sees the answers, from left to right."""
        return "".join(
            sorted(self.letters, key=lambda letter: content_id(self.id, annotator, letter))
        )


def mark_shared(questions: Sequence[Question], cfg: HumanPage) -> list[Question]:
    """Return the questions, with a share `cfg.overlap` of them for `cfg.annotators` people instead of one."""
    by_hash = sorted(questions, key=lambda q: content_id(cfg.seed, "shared", q.id))
    shared = {q.id for q in by_hash[: round(cfg.overlap * len(questions))]}
    return [replace(q, needed=cfg.annotators) if q.id in shared else q for q in questions]


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the first candidate with each text, without copies."""
    return [*{c.stripped_text: c for c in reversed(candidates)}.values()]


def question(prompt: Example, candidates: Sequence[Candidate], instructions: str) -> Question:
    ordered = tuple(sorted(candidates, key=lambda c: content_id(c.text)))
    return Question(
        content_id(instructions, prompt.messages, *(c.text for c in ordered)), prompt, ordered
    )


class AsksHumans(ABC):
    """A labeler that asks people. An ensemble asks them, too, where its members differ."""

    @staticmethod
    @abstractmethod
    def ask(
        questions: Sequence[Question], cfg: HumanPage, out: StageDir
    ) -> dict[str, list[Judgement]]:
        """Return people's judgements by the question's id, once all questions are answered.
        Raise UserError if people cannot be asked, and KeyboardInterrupt if asking is stopped."""
