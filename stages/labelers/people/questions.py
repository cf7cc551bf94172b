"""Questions for people: answers to a prompt side by side, drawn by hashes, without the models that wrote them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stages.config.blocks.labels import Human, People
from stages.labelers.labeler import Pool, group_up
from stages.store.records import Candidate, Example, content_id

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


def draw_questions(pool: Pool, cfg: Human) -> list[Question]:
    """Return the questions about a pool, in the order of asking. A pool reduced to their candidates gives the same."""
    seed = cfg.seed
    prompts_with_choice = [
        (p, unlike) for p, pool_part in pool.by_prompt() if len(unlike := distinct(pool_part)) > 1
    ]
    prompts_with_choice.sort(key=lambda each: content_id(seed, "prompt", each[0].id))
    questions = [
        question(prompt, group, cfg.instructions)
        for prompt, candidates in prompts_with_choice[: cfg.prompts]
        for group in group_up(candidates, cfg.answers, cfg.comparisons, seed)
    ]
    return sorted(mark_shared(questions, cfg), key=lambda q: content_id(seed, "order", q.id))


def mark_shared(questions: Sequence[Question], cfg: People) -> list[Question]:
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
