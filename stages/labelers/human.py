"""`label=human`: people judge candidates in a browser (`pip install -e '.[people]'`).

Answers to a prompt stand side by side, in another order for everybody, and nothing says which model wrote them. The
node is complete when every question has as many answers as it needs; until then the same command goes on. Several
people come together as their majority; where no verdict has one, they have seen a tie. What was said is kept for ever
(`people/session.py`): a question that somebody answered is never put to them again.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

from stages.config.blocks.labels import Label
from stages.config.errors import UserError
from stages.labelers.labeler import Labeler, Pool
from stages.labelers.people import answer_rows
from stages.labelers.people.questions import LETTERS, SKIP, TIE, Question, distinct, draw_questions
from stages.labelers.people.server import collect_answers
from stages.labelers.people.session import Answer
from stages.store.records import Candidate, Example, Judgement
from stages.store.workspace import StageDir


class People(Labeler):
    """Asks people which of a prompt's candidates is best."""

    name = "human"

    def __init__(self, cfg: Label, out: StageDir):
        self.cfg, self.out = cfg.human, out

    @classmethod
    def of(cls, cfg: Label, out: StageDir) -> "People":
        return cls(cfg, out)

    def pool(self, inputs: dict[str, Path]) -> Pool:
        """The candidates that people are asked about, and a line of what is left out.

        Raises:
            UserError: where no prompt has two different answers.
        """
        pool = super().pool(inputs)
        questions = draw_questions(pool, self.cfg)
        without_choice = sum(len(distinct(candidates)) < 2 for _, candidates in pool.by_prompt())
        if not questions:
            raise UserError(
                f"label=human: none of {len(pool.prompts)} prompts has two different answers. Raise "
                "sample.temperatures or sample.candidates_per_prompt."
            )
        prompt_ids = {q.prompt.id for q in questions}
        shown_ids = {c.candidate_id for q in questions for c in q.candidates}
        note = (
            f"{len(questions)} questions for people, about {len(prompt_ids)} of {len(pool.prompts)} prompts ({without_choice} have "
            f"no two different answers) and {len(shown_ids)} of {len(pool.candidates)} candidates"
        )
        prompts = [prompt for prompt in pool.prompts if prompt.id in prompt_ids]
        return Pool(prompts, [c for c in pool.candidates if c.candidate_id in shown_ids], notes=[note])

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        return self.judge_all(Pool([prompt], candidates))

    def judge_all(self, pool: Pool) -> Iterator[Judgement]:
        """Judgements when everything is answered, by people here or in a file."""
        session = collect_answers(draw_questions(pool, self.cfg), self.cfg, self.out)
        for question in session.questions.values():
            yield from question_judgements(question, answer_rows.answers_of_question(question, session))


def question_judgements(question: Question, answers: list[Answer]) -> list[Judgement]:
    """What people say of a question, two candidates at a time: the best of them against each of the others, or, of a
    tie, the first against each. Two bad answers are a tie; `raw` says who said what."""
    verdicts_by_person = {
        a.annotator: {"verdict": a.verdict, "reasons": a.reasons, "comment": a.comment} for a in answers
    }
    best, error = majority(answers)
    judgements = []
    for a, b in combinations(question.letters, 2):
        if (best or LETTERS[0]) in (a, b):
            first, second = (question.candidates[LETTERS.index(letter)].candidate_id for letter in (a, b))
            preference = None if error else TIE if best is None else "ab"[best == b]
            judgement = Judgement(question.prompt.id, People.name, a=first, b=second, preference=preference)
            judgement.raw, judgement.error = json.dumps(verdicts_by_person), error
            judgements.append(judgement)
    return judgements


def majority(answers: list[Answer]) -> tuple[str | None, str | None]:
    """The letter that more than half prefer, None where none is; and why nothing was said, where everybody skipped."""
    verdicts = [str(a.verdict) for a in answers if a.verdict != SKIP]
    if not verdicts:
        return None, "everybody who was asked skipped it"
    word, count = Counter(verdicts).most_common(1)[0]
    return (word if 2 * count > len(verdicts) and word in [*LETTERS] else None), None
