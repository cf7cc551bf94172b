"""`label=ensemble`: several labelers, each a label node of its own, vote on two candidates of a prompt at a time.
People are asked where these disagree.

A labeler that scores candidates votes for the one with the higher score, one that compares them for what it preferred.
Where votes differ is where a further word is worth most: query by committee (Seung, Opper & Sompolinsky 1992, COLT).

With `label.ensemble.people`, the judgements that `label.audit` sets aside are asked about first: they are drawn at
random, people's words on them say how often the ensemble is right, and change no judgement. Then come those on which
the members disagree most, as many as the budget has; what people say of these is the judgement.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from stages.config.blocks.labels import Label, Voter
from stages.config.errors import UserError
from stages.evaluation.reliability import Key, decided, key_of, set_aside
from stages.labelers.human import judgements as of_people
from stages.labelers.labeler import Labeler, Pool
from stages.labelers.people import answer_rows
from stages.labelers.people.questions import Question, overlapping, question
from stages.labelers.people.server import answered
from stages.store.records import Candidate, Example, Judgement, content_id, load
from stages.store.workspace import StageDir

WORDS = {1: "a", 0: "tie", -1: "b"}
EVEN = 1e-9  # a weighted mean of votes so near to 0 is a tie
Two = tuple[str, str]  # candidates, the first of them `a`


@dataclass(frozen=True)
class JointVote:
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
) -> Iterator[JointVote]:
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
                yield joint_verdict(members, a, b)


def joint_verdict(members: Sequence[Member], a: Candidate, b: Candidate) -> JointVote:
    """What follows from the votes on two candidates."""
    of = a.candidate_id, b.candidate_id
    if a.stripped_text == b.stripped_text:
        return JointVote(a.prompt_id, of, {}, "tie")
    votes = {m.name: vote for m in members if (vote := m.vote(*of)) is not None}
    bad = [any(m.objects(candidate) for m in members) for candidate in of]
    if any(bad):
        return JointVote(a.prompt_id, of, votes, WORDS[bad[1] - bad[0]], vetoed=True)
    weights = {m.name: m.weight for m in members}
    given = sum(weights[name] for name in votes)
    if 2 * given <= sum(weights.values()):
        return JointVote(a.prompt_id, of, votes, None)
    mean = sum(weights[name] * vote for name, vote in votes.items()) / given
    square = sum(weights[name] * vote**2 for name, vote in votes.items()) / given
    word = WORDS[(mean > EVEN) - (mean < -EVEN)]
    return JointVote(a.prompt_id, of, votes, word, max(0.0, square - mean**2))


class Ensemble(Labeler):
    """Joins what other label nodes say."""

    name = "ensemble"

    def __init__(self, cfg: Label, out: StageDir):
        self.cfg, self.out, self.told = cfg, out, dict[str, Any]()
        self.said = dict[str, list[Judgement]]()

    @classmethod
    def of(cls, cfg: Label, out: StageDir) -> "Ensemble":
        return cls(cfg, out)

    def pool(self, inputs: dict[str, Path]) -> Pool:
        """The pool that all members judged; their judgements are read beside it.

        Raises:
            UserError: for a veto of a member that gives no scores.
        """
        for i, voter in enumerate(self.cfg.voters):
            self.said[voter.labeler] = its = load(inputs[voter.labeler] / "judgements.parquet", Judgement)
            if voter.veto is not None and any(j.preference for j in its):
                raise UserError(f"label.ensemble.members[{i}].veto goes by a score, and {voter.labeler} gives none.")
        return super().pool(inputs)

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        return self.judge_all(Pool([prompt], candidates))

    def figures(self) -> dict[str, Any]:
        return {"ensemble": self.told}

    def judge_all(self, pool: Pool) -> Iterator[Judgement]:
        """What the members come to, and people where they were asked."""
        found = [*joined(self.cfg.voters, self.said, pool.candidates)]
        judged: dict[Key, Judgement] = {each.of: judgement(each) for each in found}
        self.told = tally(self.cfg, found, self.said)
        if self.cfg.ensemble.people:
            self.ask(pool, found, judged)
        yield from judged.values()

    def ask(self, pool: Pool, found: Sequence[JointVote], judged: dict[Key, Judgement]) -> None:
        """Have people judge, first what is audited, then what is in doubt; the latter's judgements become theirs, also
        those of copies. Nobody is asked about the same two texts twice."""
        prompts, candidates = {p.id: p for p in pool.prompts}, {c.candidate_id: c for c in pool.candidates}

        def question_of(key: Key) -> Question:
            shown_candidates = [candidates[name] for name in key]
            return question(prompts[judged[key].prompt_id], shown_candidates, self.cfg.human.instructions or "")

        count = 0 if self.cfg.known else self.cfg.audit or 0
        audited = {key_of(j): question_of(key_of(j)) for j in set_aside(decided(judged.values(), candidates), count)}
        audited_ids = {each.id for each in audited.values()}
        in_doubt = [each for each in found if each.disagreement > 0]
        in_doubt.sort(key=lambda each: (-each.disagreement, content_id("doubt", each.of)))
        doubtful = {each.of: question_of(each.of) for each in in_doubt}
        doubtful_ids = [*dict.fromkeys(q.id for q in doubtful.values() if q.id not in audited_ids)]
        asked_ids = {*doubtful_ids[: self.cfg.ensemble.people]}
        questions = audited | {key: q for key, q in doubtful.items() if q.id in asked_ids}
        by_id = {q.id: q for q in questions.values()}
        session = answered(overlapping([*by_id.values()], self.cfg.human), self.cfg.human, self.out)
        known, changed = dict[Key, str](), 0
        for of, asked in questions.items():
            [theirs] = of_people(asked, answer_rows.answers_to(asked, session))
            if theirs.preference is None:  # everybody skipped it
                continue
            word = theirs.preference if theirs.a == of[0] else {"a": "b", "b": "a"}.get(theirs.preference, "tie")
            if of in audited:
                known[of] = word
                continue
            changed += judged[of].preference != word
            raw = json.dumps({**json.loads(judged[of].raw or "{}"), "human": json.loads(theirs.raw or "{}")})
            judged[of] = Judgement(judged[of].prompt_id, self.name, a=of[0], b=of[1], preference=word, raw=raw)
        self.known = known
        self.told["people"] = {
            "audited": len(audited),
            "asked": len(asked_ids),
            "in_doubt": len(doubtful_ids),
            "changed": changed,
        }


def judgement(each: JointVote) -> Judgement:
    """The members' own; `raw` says who voted for what."""
    told = json.dumps({name: WORDS[vote] for name, vote in each.votes.items()})
    a, b = each.of
    error = None if each.preference else "members that say nothing of it weigh half or more"
    return Judgement(each.prompt_id, Ensemble.name, a=a, b=b, preference=each.preference, raw=told, error=error)


def tally(cfg: Label, found: Sequence[JointVote], said: Mapping[str, Sequence[Judgement]]) -> dict[str, Any]:
    """How often each member votes, votes with the verdict, and vetoes; how often they disagree or a veto decides."""
    members = dict[str, dict[str, Any]]()
    for voter in cfg.voters:
        votes = [(WORDS[each.votes[voter.labeler]], each.preference) for each in found if voter.labeler in each.votes]
        members[voter.labeler] = {
            "weight": voter.weight,
            "votes": len(votes),
            "with_the_verdict": sum(vote == verdict for vote, verdict in votes) / len(votes) if votes else None,
        }
        if (veto := voter.veto) is not None:
            vetoes = sum(j.score is not None and j.score < veto for j in said[voter.labeler])
            members[voter.labeler] |= {"veto": veto, "vetoes": vetoes}
    return {
        "members": members,
        "comparisons": len(found),
        "disagreements": sum(each.disagreement > 0 for each in found),
        "vetoed": sum(each.vetoed for each in found),
    }
