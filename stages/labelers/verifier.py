"""`label=verifier`: score candidates by the programmatic checks of generated instructions, without a judge."""

from functools import partial

from stages.labelers.labeler import Labeler
from stages.store.records import Candidate, Example, Judgement
from stages.tasks.checks import share_passed


class Verifier(Labeler):
    """Scores a candidate by the share of its prompt's checks that pass."""

    name = "verifier"

    def judge(self, prompt: Example, candidates: list[Candidate]) -> list[Judgement]:
        judgement = partial(Judgement, prompt.id, self.name)
        if not prompt.checks:
            return [judgement(c.candidate_id, error="the prompt has no checks (judges need none)") for c in candidates]
        return [judgement(c.candidate_id, score=share_passed(prompt.checks, c.text)) for c in candidates]
