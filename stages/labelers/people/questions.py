"""What people are asked: answers of a prompt side by side, drawn by hashes, and blind to where they came from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stages.config.blocks.labels import Human
from stages.labelers.labeler import Pool, group_up
from stages.store.records import Candidate, Example, content_id

LETTERS = "abcdef"  # of the answers, in the order of the question
TIE, BAD, SKIP = "tie", "bad", "skip"  # equally good, all of them bad, cannot say
VERDICTS = (*LETTERS, TIE, BAD)  # what labellers may agree on


@dataclass(frozen=True)
class Question:
    """Different answers to a prompt, `a` the first, and how many people are to judge them.

    The id is a hash of all that a person is shown, so that nobody is asked the same twice, in this node or another.
    The answers' order is one of their hashes: which comes first is random, and the same in every node.
    """

    id: str
    prompt: Example
    candidates: tuple[Candidate, ...]
    needed: int = 1

    @property
    def letters(self) -> str:
        return LETTERS[: len(self.candidates)]

    @property
    def words(self) -> tuple[str, ...]:
        """What may be said of it."""
        return (*self.letters, TIE, BAD, SKIP)

    def order(self, annotator: str) -> str:
        """The letters as this person sees them from left to right: another order for everybody."""
        return "".join(sorted(self.letters, key=lambda letter: content_id(self.id, annotator, letter)))


def draw_questions(pool: Pool, cfg: Human) -> list[Question]:
    """The questions about a pool, in the order in which they are asked. A pool of nothing but the candidates that are
    asked about gives the same ones."""
    seed = cfg.seed or 0
    prompts_with_choice = [
        (p, unlike) for p, candidates in pool.by_prompt() if len(unlike := distinct(candidates)) > 1
    ]
    prompts_with_choice.sort(key=lambda each: content_id(seed, "prompt", each[0].id))
    questions = [
        question(prompt, group, cfg.instructions or "")
        for prompt, candidates in prompts_with_choice[: cfg.prompts]
        for group in group_up(candidates, cfg.answers or 2, cfg.comparisons, seed)
    ]
    return sorted(mark_shared(questions, cfg), key=lambda q: content_id(seed, "order", q.id))


def mark_shared(questions: Sequence[Question], cfg: Human) -> list[Question]:
    """The same questions, of which `overlap` are asked of several people."""
    by_hash = sorted(questions, key=lambda q: content_id(cfg.seed or 0, "shared", q.id))
    shared = {q.id for q in by_hash[: round((cfg.overlap or 0) * len(questions))]}
    return [replace(q, needed=cfg.annotators or 2) if q.id in shared else q for q in questions]


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the first candidate with each text: nobody can tell two copies apart."""
    return [*{c.stripped_text: c for c in reversed(candidates)}.values()]


def question(prompt: Example, candidates: Sequence[Candidate], instructions: str) -> Question:
    ordered = tuple(sorted(candidates, key=lambda c: content_id(c.text)))
    return Question(content_id(instructions, prompt.messages, *(c.text for c in ordered)), prompt, ordered)
