"""`label=verifier`: score candidates by the programmatic checks of generated instructions, without a judge."""

from collections.abc import Callable, Iterator
from functools import partial

from stages.curation.answer_rules import is_repetitive
from stages.labelers.labeler import Labeler, Pool
from stages.store.records import Candidate, Check, Example, Judgement
from stages.tasks.checks import share_passed

Score = Callable[[list[Check], str], float]
PROSE = ("on_topic", "own_words")  # the checks of every open request


class VerifierLabeler(Labeler):
    """Scores a candidate by the share of checks passed, and a rollout by its reward."""

    name = "verifier"

    def judge(
        self, prompt: Example, candidates: list[Candidate], score: Score = share_passed
    ) -> list[Judgement]:
        judgement = partial(Judgement, prompt.id, self.name)
        if not prompt.checks:
            return [
                judgement(c.candidate_id, error="the prompt has no checks (judges need none)")
                for c in candidates
            ]
        return [judgement(c.candidate_id, score=score(prompt.checks, c.text)) for c in candidates]

    def judge_rollouts(self, pool: Pool) -> Iterator[Judgement]:
        for prompt, completions in pool.by_prompt():
            yield from self.judge(prompt, completions, reward)


def reward(checks: list[Check], answer: str) -> float:
    """Return the reward of an answer, in [0, 1].

    Of a short task: 1 if all checks pass, else 0, because the right form of a wrong answer is worth nothing.
    Of an open request: the share of checks passed. Prose on the topic passes topic and own words, so these count only
    if all constraints are kept and the answer does not repeat itself."""
    constraints = [check for check in checks if check.kind not in PROSE]
    share = share_passed(constraints, answer) if constraints else 1.0
    if len(constraints) == len(checks):
        return float(share == 1)
    counts_prose = share == 1 and not is_repetitive(answer)
    return share_passed(checks, answer) if counts_prose else share * len(constraints) / len(checks)
