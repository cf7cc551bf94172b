"""Two candidates of a prompt, and which of them is better."""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

from stages.store.records import Candidate, Judgement


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two candidates of a prompt, by how much one is better, and the score of that one. The margin is a difference of
    scores, or in a ranking of preferences a difference of chances (`plackett_luce.py`). Score and margin are None
    where a labeler gave the order of the two alone; `lead` is then by how many more others the better one was
    preferred. `standing`: how high the better one stands among its prompt's candidates, by score or by preferences.
    `compared`: a labeler said so of these two, and no ranking alone does."""

    better: Candidate
    worse: Candidate
    margin: float | None
    score: float | None = None
    lead: float = 0.0
    standing: float = 0.0
    compared: bool = True

    @property
    def distance(self) -> float:
        return self.lead if self.margin is None else self.margin

    @property
    def length_ratio(self) -> float:
        """Tokens of the longer one over those of the shorter."""
        short, long = sorted((self.better.n_tokens, self.worse.n_tokens))
        return long / max(1, short)

    @property
    def longer_by(self) -> int:
        """Tokens that the better one has more."""
        return self.better.n_tokens - self.worse.n_tokens


def comparisons(judgements: list[Judgement], candidates: dict[str, Candidate]) -> list[Contrast]:
    """Return every two candidates of a prompt that were judged, better first, in the order of their ids, whatever the
    order of the judgements; equal scores and ties come with margin 0. Where there are preferences alone, a candidate
    stands as high as it was preferred more often than not (Copeland)."""
    contrasts: list[Contrast] = []
    preferred = [(j, str(j.a), str(j.b)) for j in judgements if j.preference is not None]
    copeland = Counter[str]()
    for judgement, a_id, b_id in preferred:
        sign = {"a": 1, "b": -1}.get(str(judgement.preference), 0)
        copeland.update({a_id: sign, b_id: -sign})
    for judgement, a_id, b_id in preferred:
        above, below = (b_id, a_id) if judgement.preference == "b" else (a_id, b_id)
        margin, standing = 0.0 if judgement.preference == "tie" else None, copeland[above]
        lead = standing - copeland[below]
        contrasts.append(Contrast(candidates[above], candidates[below], margin, lead=lead, standing=standing))
    scored = [(candidates[str(j.candidate_id)], j.score) for j in judgements if j.score is not None]
    scored.sort(key=lambda each: each[0].candidate_id)
    for (a, a_score), (b, b_score) in combinations(scored, 2):
        better, worse = (a, b) if a_score >= b_score else (b, a)
        highest = max(a_score, b_score)
        contrasts.append(Contrast(better, worse, abs(a_score - b_score), highest, standing=highest))
    return sorted(contrasts, key=lambda c: (c.better.candidate_id, c.worse.candidate_id, c.margin is not None))
