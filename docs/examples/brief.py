from stages.labelers.labeler import Labeler
from stages.store.records import Judgement


class Brief(Labeler):
    """Prefer answers with fewer characters."""

    name = "brief"
    relative = False  # 0 is a bad score by itself

    def __init__(self, most: int = 200):
        self.most = most

    def judge(self, prompt, candidates):
        for candidate in candidates:
            score = max(0.0, 1 - len(candidate.text) / self.most)
            yield Judgement(prompt.id, self.name, candidate.candidate_id, score=score)
