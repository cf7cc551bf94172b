"""`label=source_order`: score candidates by the place of their source in `sample.pool`, without a judge.

Answers of a better model are chosen over those of a weaker one: what a pair teaches is the difference between the two,
even where the chosen answer is no better than the policy's own (delta learning, arXiv:2507.06187)."""

from pathlib import Path
from typing import Any

from stages.labelers.labeler import Labeler, Pool
from stages.store.manifest import manifest_of
from stages.store.records import Candidate, Example, Judgement


class SourceOrderLabeler(Labeler):
    """Scores the candidates of the first source 1, those of the last 0, and others in even steps between."""

    name = "source_order"
    scores: dict[str, float]

    def pool(self, inputs: dict[str, Path]) -> Pool:
        sources = [*manifest_of(inputs["pool"])["metrics"]["sources"]]
        self.scores = {name: 1 - place / (len(sources) - 1) for place, name in enumerate(sources)}
        return super().pool(inputs)

    def judge(self, prompt: Example, candidates: list[Candidate]) -> list[Judgement]:
        scored = ((c.candidate_id, self.scores[c.policy or ""]) for c in candidates)
        return [Judgement(prompt.id, self.name, name, score=score) for name, score in scored]

    def figures(self) -> dict[str, Any]:
        """Return no pass rate: the score says where an answer is from, and not that it is right."""
        order = " before ".join(self.scores)
        return {"pass_rate": None, "summary": f"candidates in the order of their sources: {order}"}
