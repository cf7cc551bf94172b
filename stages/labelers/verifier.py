"""`label=verifier`: score candidates by the programmatic checks of generated instructions, without a judge."""

from collections.abc import Iterator
from functools import partial

from stages.labelers.labeler import Labeler, Pool
from stages.store.records import Candidate, Example, Judgement
from stages.tasks.checks import share_passed


class Verifier(Labeler):
    """Scores a candidate by the share of checks passed. In GRPO, prose that merely keeps to the topic gets nothing."""

    name = "verifier"

    def judge(self, prompt: Example, candidates: list[Candidate], gated: bool = False) -> list[Judgement]:
        judgement = partial(Judgement, prompt.id, self.name)
        if not prompt.checks:
            return [judgement(c.candidate_id, error="the prompt has no checks (judges need none)") for c in candidates]
        return [judgement(c.candidate_id, score=share_passed(prompt.checks, c.text, gated)) for c in candidates]

    def judge_rollouts(self, pool: Pool) -> Iterator[Judgement]:
        for prompt, completions in pool.by_prompt():
            yield from self.judge(prompt, completions, gated=True)
