"""The verifier: checks stored as data, run against an answer. It needs no judge and makes no mistakes of taste."""

from stages.store.records import Candidate, Example, Judgement
from stages.tasks.checks import share_passed


def judge(example: Example, candidates: list[Candidate]) -> list[Judgement]:
    """A score for every candidate of a prompt; missing where the prompt has no checks."""
    if not example.checks:
        return [
            Judgement(example.id, "verifier", c.candidate_id, error="the prompt has no checks") for c in candidates
        ]
    return [
        Judgement(example.id, "verifier", c.candidate_id, score=share_passed(example.checks, c.text))
        for c in candidates
    ]
