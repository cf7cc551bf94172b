"""Two candidates side by side: contrasts of one prompt, the better one first, and KTO's mismatches of two prompts.

KTO compares log-ratios with z, an estimate of the KL divergence from the reference: the mean log-ratio of completions
to prompts that they do not answer. Every row keeps its mismatched completion, which neither the order of the rows nor
the micro-batch changes. (TRL takes the row before, often another answer to the same prompt.)
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

from stages.config.errors import UserError
from stages.store.records import Candidate, Judgement, Pair, UnpairedPreference, content_id


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
        """The longer candidate's tokens divided by the shorter one's."""
        short, long = sorted((self.better.n_tokens, self.worse.n_tokens))
        return long / max(1, short)

    @property
    def longer_by(self) -> int:
        """The number of tokens by which the better candidate is longer."""
        return self.better.n_tokens - self.worse.n_tokens


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
        contrasts.append(Contrast(candidates[above], candidates[below], margin, lead=lead, standing=standing))
    scored = [(candidates[str(j.candidate_id)], j.score) for j in judgements if j.score is not None]
    scored.sort(key=lambda each: each[0].candidate_id)
    for (a, a_score), (b, b_score) in combinations(scored, 2):
        better, worse = (a, b) if a_score >= b_score else (b, a)
        highest = max(a_score, b_score)
        contrasts.append(Contrast(better, worse, abs(a_score - b_score), highest, standing=highest))
    return sorted(contrasts, key=lambda c: (c.better.candidate_id, c.worse.candidate_id, c.margin is not None))


@dataclass
class MismatchedPair(Pair):
    """A row of KTO: `chosen` is the completion that it labels, and `rejected` the mismatched one."""

    chosen_finish_reason: str = "stop"
    cuts_rejected: bool = True


def mismatched_pairs(rows: Iterable[UnpairedPreference]) -> Iterator[MismatchedPair]:
    """Yield each row with a completion of the same split. In the order of hashes, in a circle, it is the next one of
    another prompt, so that completions are used about equally often.

    Raises:
        UserError: if a split with rows has a single prompt.
    """
    by_split = defaultdict[str, list[UnpairedPreference]](list)
    for row in rows:
        by_split[row.split].append(row)
    for split, members in by_split.items():
        if len({row.prompt_id for row in members}) == 1:
            raise UserError(
                f"KTO needs completions of two prompts, but those of the {split} split all answer one. Add prompts, "
                "or change unpaired.validation_fraction."
            )
        circle = sorted(members, key=lambda row: content_id("mismatched", row.id, row.candidate_id))
        for i, row in enumerate(circle):
            others = (circle[(i + step) % len(circle)] for step in range(1, len(circle)))
            yield join_mismatch(row, next(other for other in others if other.prompt_id != row.prompt_id))


def join_mismatch(row: UnpairedPreference, other: UnpairedPreference) -> MismatchedPair:
    return MismatchedPair(
        id=row.id,
        prompt_id=row.prompt_id,
        prompt=row.prompt,
        chosen=row.completion,
        rejected=other.completion,
        margin=None,
        labeler=row.labeler,
        strategy="mismatched",
        chosen_id=row.candidate_id,
        rejected_id=other.candidate_id,
        split=row.split,
        chosen_token_ids=row.completion_token_ids,
        rejected_token_ids=other.completion_token_ids,
        chosen_tokenizer=row.completion_tokenizer,
        rejected_tokenizer=other.completion_tokenizer,
        rejected_finish_reason=other.finish_reason,
        chosen_finish_reason=row.finish_reason,
    )
