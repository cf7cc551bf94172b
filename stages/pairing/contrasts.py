"""Contrasts: two candidates of a prompt, the better one first."""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

from stages.store.records import Candidate, Judgement


@dataclass(frozen=True, slots=True)
class Contrast:
    """A better and a worse candidate of a prompt. `margin` is the difference of their scores or, in a ranking, of two
    probabilities (`plackett_luce.py`); `score` is the better one's. Both are None if a labeler gave only a preference;
    then `lead` is the difference of their Copeland counts (wins minus losses). `standing` is the better one's score,
    count or strength. `compared` is False if only a ranking orders the two, and no labeler compared them."""

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
        """The longer answer's tokens divided by the shorter one's."""
        short, long = sorted((self.better.length, self.worse.length))
        return long / max(1, short)

    @property
    def longer_by(self) -> int:
        """The number of tokens by which the better answer is longer."""
        return self.better.length - self.worse.length


def comparisons(judgements: list[Judgement], candidates: dict[str, Candidate]) -> list[Contrast]:
    """Return the contrasts of a prompt's judged candidates, ordered by candidate ids. Equal scores and ties have
    margin 0. For preferences, a candidate's standing is its wins minus its losses (Copeland)."""
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
        contrasts.append(
            Contrast(candidates[above], candidates[below], margin, lead=lead, standing=standing)
        )
    scored = [(candidates[str(j.candidate_id)], j.score) for j in judgements if j.score is not None]
    scored.sort(key=lambda each: each[0].candidate_id)
    for (a, a_score), (b, b_score) in combinations(scored, 2):
        better, worse = (a, b) if a_score >= b_score else (b, a)
        highest = max(a_score, b_score)
        contrasts.append(Contrast(better, worse, abs(a_score - b_score), highest, standing=highest))
    return sorted(
        contrasts, key=lambda c: (c.better.candidate_id, c.worse.candidate_id, c.margin is not None)
    )
