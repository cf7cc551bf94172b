"""Votes of several labelers on two candidates of a prompt at a time, and what they come to.

A labeler that scores candidates votes for the one with the higher score, one that compares them for what it preferred.
Where votes differ is where a further word is worth most: query by committee (Seung, Opper & Sompolinsky 1992, COLT).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from stages.config.blocks.labels import Voter
from stages.store.records import Candidate, Judgement, content_id

WORDS = {1: "a", 0: "tie", -1: "b"}
EVEN = 1e-9  # a weighted mean of votes so near to 0 is a tie
Two = tuple[str, str]  # candidates, the first of them `a`


@dataclass(frozen=True)
class Joined:
    """What the members say of two candidates: 1 for `a`, -1 for `b`, 0 for a tie; a member that says nothing is not
    among `votes`. `preference` is what follows, None where those that vote weigh no more than half of all.

    `disagreement`: the weighted variance of the votes, 0 where all say the same and 1 where they are split in halves.
    Where a veto decides, there is none.
    """

    prompt_id: str
    of: Two
    votes: Mapping[str, int]
    preference: str | None
    disagreement: float = 0.0
    vetoed: bool = False


class Member:
    """A labeler of the ensemble, and its judgements of one prompt's candidates."""

    def __init__(self, voter: Voter, judgements: Iterable[Judgement]):
        self.name, self.weight, self.veto = voter.labeler, voter.weight, voter.veto
        self.scores, self.preferred = dict[str, float](), dict[Two, int | None]()
        for j in judgements:
            if j.score is not None:
                self.scores[str(j.candidate_id)] = j.score
            if j.a is not None:
                said = {"a": 1, "b": -1, "tie": 0}.get(str(j.preference))
                a, b = str(j.a), str(j.b)
                self.preferred |= {(a, b): said, (b, a): None if said is None else -said}

    def vote(self, a: str, b: str) -> int | None:
        if (a, b) in self.preferred:
            return self.preferred[a, b]
        if a in self.scores and b in self.scores:
            return (self.scores[a] > self.scores[b]) - (self.scores[a] < self.scores[b])
        return None

    def objects(self, candidate: str) -> bool:
        """Whether it vetoes a candidate; one that it could not judge it does not."""
        return self.veto is not None and self.scores.get(candidate, self.veto) < self.veto


def joined(
    voters: Sequence[Voter], said: Mapping[str, Iterable[Judgement]], candidates: Iterable[Candidate]
) -> Iterator[Joined]:
    """What members come to, prompt by prompt. Two candidates are compared if every member that compares was asked of
    them; where all give scores, every two. `said`: judgements by member."""
    by_prompt, of = defaultdict[tuple[str, str], list[Judgement]](list), defaultdict[str, list[Candidate]](list)
    for name, judgements in said.items():
        for j in judgements:
            by_prompt[j.prompt_id, name].append(j)
    for candidate in candidates:
        of[candidate.prompt_id].append(candidate)
    comparing = {name for name, its in said.items() if any(j.a is not None for j in its)}
    for prompt_id, those in of.items():
        members = [Member(voter, by_prompt[prompt_id, voter.labeler]) for voter in voters]
        asked = [m.preferred for m in members if m.name in comparing]
        # Which is `a` is random: an audit counts how often it is the better one.
        ordered = sorted(those, key=lambda c: content_id("ensemble", c.candidate_id))
        for a, b in combinations(ordered, 2):
            if all((a.candidate_id, b.candidate_id) in its for its in asked):
                yield verdict(members, a, b)


def verdict(members: Sequence[Member], a: Candidate, b: Candidate) -> Joined:
    """What follows from the votes on two candidates."""
    of = a.candidate_id, b.candidate_id
    if a.stripped_text == b.stripped_text:
        return Joined(a.prompt_id, of, {}, "tie")
    votes = {m.name: vote for m in members if (vote := m.vote(*of)) is not None}
    bad = [any(m.objects(candidate) for m in members) for candidate in of]
    if any(bad):
        return Joined(a.prompt_id, of, votes, WORDS[bad[1] - bad[0]], vetoed=True)
    weights = {m.name: m.weight for m in members}
    given = sum(weights[name] for name in votes)
    if 2 * given <= sum(weights.values()):
        return Joined(a.prompt_id, of, votes, None)
    mean = sum(weights[name] * vote for name, vote in votes.items()) / given
    square = sum(weights[name] * vote**2 for name, vote in votes.items()) / given
    word = WORDS[(mean > EVEN) - (mean < -EVEN)]
    return Joined(a.prompt_id, of, votes, word, max(0.0, square - mean**2))
