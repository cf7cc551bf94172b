"""`label=human`: people judge candidates in a browser (`pip install -e '.[people]'`).

The page shows answers to a prompt side by side, in a random order for each person, and hides which model wrote them.
The node is complete when every question has as many verdicts as it needs; until then, the same command resumes.
Several people decide by majority; without a majority, the judgement is a tie. Verdicts are stored permanently
(`session.py`), so nobody is asked the same question again."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

from stages.config.blocks.labels import HUMAN, HumanPage
from stages.config.errors import UserError
from stages.extras.human import Human, answer_rows
from stages.extras.human.server import collect_answers
from stages.extras.human.session import Answer
from stages.labelers.labeler import Labeler, Pool, group_up
from stages.labelers.questions import (
    LETTERS,
    SKIP,
    TIE,
    AsksHumans,
    Question,
    distinct,
    mark_shared,
    question,
)
from stages.store.records import Candidate, Example, Judgement, content_id
from stages.store.workspace import StageDir


class HumanLabeler(Labeler, AsksHumans):
    """Asks people which of a prompt's candidates is best."""

    name = HUMAN

    def __init__(self, cfg: Human, out: StageDir):
        self.cfg, self.out = cfg, out

    def pool(self, inputs: dict[str, Path]) -> Pool:
        """Return the part to ask people about, with a note on its size. Raise UserError without different answers."""
        pool = super().pool(inputs)
        questions = draw_questions(pool, self.cfg)
        alike = sum(len(distinct(candidates)) < 2 for _, candidates in pool.by_prompt())
        if not questions:
            problem = f"{self.cfg.option}: none of the {len(pool.prompts)} prompts has two different answers"
            raise UserError(
                f"{problem}. Raise sample.temperatures or sample.candidates_per_prompt."
            )
        prompt_ids = {q.prompt.id for q in questions}
        shown_ids = {c.candidate_id for q in questions for c in q.candidates}
        note = f"People get {len(questions)} questions about {len(prompt_ids)} of {len(pool.prompts)} prompts and "
        note += f"{len(shown_ids)} of {len(pool.candidates)} candidates; "
        note += f"{alike} prompts do not have two different answers"
        prompts = [prompt for prompt in pool.prompts if prompt.id in prompt_ids]
        return Pool(
            prompts, [c for c in pool.candidates if c.candidate_id in shown_ids], notes=[note]
        )

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        return self.judge_all(Pool([prompt], candidates))

    def judge_all(self, pool: Pool) -> Iterator[Judgement]:
        """Yield judgements after all questions are answered, on the page or by a file."""
        judgements_by_question = self.ask(draw_questions(pool, self.cfg), self.cfg, self.out)
        for judgements in judgements_by_question.values():
            yield from judgements

    @staticmethod
    def ask(
        questions: Sequence[Question], cfg: HumanPage, out: StageDir
    ) -> dict[str, list[Judgement]]:
        """Return people's judgements by the question's id, once all questions are answered."""
        session = collect_answers(questions, cfg, out)
        judgements_by_question = dict[str, list[Judgement]]()
        for name, asked in session.questions.items():
            answers = answer_rows.answers_to(asked, session, asked.needed)
            judgements_by_question[name] = question_judgements(asked, answers)
        return judgements_by_question


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


def question_judgements(question: Question, answers: list[Answer]) -> list[Judgement]:
    """Return people's verdicts on a question as preferences: the best candidate against each other one. If there is no
    majority, or all answers are bad, the first candidate ties with each other one. `raw` has each person's verdict."""
    verdicts = {
        a.annotator: {"verdict": a.verdict, "reasons": a.reasons, "comment": a.comment}
        for a in answers
    }
    best, error = majority(answers)
    judgements = []
    for a, b in combinations(question.letters, 2):
        if (best or LETTERS[0]) in (a, b):
            first, second = (
                question.candidates[LETTERS.index(letter)].candidate_id for letter in (a, b)
            )
            preference = None if error else TIE if best is None else "ab"[best == b]
            judgement = Judgement(
                question.prompt.id, HumanLabeler.name, a=first, b=second, preference=preference
            )
            judgement.raw, judgement.error = json.dumps(verdicts), error
            judgements.append(judgement)
    return judgements


def majority(answers: list[Answer]) -> tuple[str | None, str | None]:
    """Return the letter that more than half prefer (None: no majority), and the error if all people skipped."""
    verdicts = [str(a.verdict) for a in answers if a.verdict != SKIP]
    if not verdicts:
        return None, "all people who were asked skipped the question"
    word, count = Counter(verdicts).most_common(1)[0]
    return (word if 2 * count > len(verdicts) and word in [*LETTERS] else None), None
