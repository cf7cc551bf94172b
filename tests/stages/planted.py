"""Labelers that are wrong on purpose, as parts of one's own (`label.own`)."""

import random
from collections.abc import Iterable

from stages.labelers.labeler import Labeler
from stages.store.records import Candidate, Example, Judgement


class Coin(Labeler):
    """Heads or tails."""

    name = "coin"

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        for c in candidates:
            score = random.Random(c.candidate_id).randrange(2)
            yield Judgement(prompt.id, self.name, c.candidate_id, score=float(score))


class Longer(Labeler):
    """The longest is right, the others as far as they are long."""

    name = "longer"

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        longest = max(c.n_tokens for c in candidates)
        for c in candidates:
            yield Judgement(prompt.id, self.name, c.candidate_id, score=c.n_tokens / longest)


class Ended(Labeler):
    """Judge completed answers as right and truncated answers as wrong."""

    name = "ended"

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        for c in candidates:
            yield Judgement(
                prompt.id, self.name, c.candidate_id, score=float(c.finish_reason == "stop")
            )
