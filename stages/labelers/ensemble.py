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
from stages.evaluation.reliability import Key, countable, draw_audit, key_of
from stages.labelers.human import question_judgements as of_people
from stages.labelers.labeler import Labeler, Pool
from stages.labelers.people import answer_rows
from stages.labelers.people.questions import Question, mark_shared, question
from stages.labelers.people.server import collect_answers
from stages.store.records import Candidate, Example, Judgement, content_id, load
from stages.store.workspace import StageDir

VERDICTS = {1: "a", 0: "tie", -1: "b"}
TIE_MARGIN = 1e-9  # a weighted mean of votes so near to 0 is a tie
CandidateIds = tuple[str, str]  # candidates, the first of them `a`


@dataclass(frozen=True)
class JointVote:
    """What the members say of two candidates: 1 for `a`, -1 for `b`, 0 for a tie; a member that says nothing is not
    among `votes`. `preference` is what follows, None where those that vote weigh no more than half of all.

    `disagreement`: the weighted variance of the votes, 0 where all say the same and 1 where they are split in halves.
    Where a veto decides, there is none.
    """

    prompt_id: str
    ids: CandidateIds
    votes: Mapping[str, int]
    preference: str | None
    disagreement: float = 0.0
    vetoed: bool = False


class Member:
    """A labeler of the ensemble, and its judgements of one prompt's candidates."""

    def __init__(self, voter: Voter, judgements: Iterable[Judgement]):
        self.name, self.weight, self.veto = voter.labeler, voter.weight, voter.veto
        self.scores, self.preferred = dict[str, float](), dict[CandidateIds, int | None]()
        for j in judgements:
            if j.score is not None:
                self.scores[str(j.candidate_id)] = j.score
            if j.a is not None:
                vote = {"a": 1, "b": -1, "tie": 0}.get(str(j.preference))
                a, b = str(j.a), str(j.b)
                self.preferred |= {(a, b): vote, (b, a): None if vote is None else -vote}

    def vote(self, a: str, b: str) -> int | None:
        if (a, b) in self.preferred:
            return self.preferred[a, b]
        if a in self.scores and b in self.scores:
            return (self.scores[a] > self.scores[b]) - (self.scores[a] < self.scores[b])
        return None

    def vetoes(self, candidate: str) -> bool:
        """Whether it vetoes a candidate; one that it could not judge it does not."""
        return self.veto is not None and self.scores.get(candidate, self.veto) < self.veto


def joint_votes(
    voters: Sequence[Voter], judgements_by_labeler: Mapping[str, Iterable[Judgement]], candidates: Iterable[Candidate]
) -> Iterator[JointVote]:
    """What members come to, prompt by prompt. Two candidates are compared if every member that compares was asked of
    them; where all give scores, every two. `said`: judgements by member."""
    by_prompt, candidates_by_prompt = (
        defaultdict[tuple[str, str], list[Judgement]](list),
        defaultdict[str, list[Candidate]](list),
    )
    for name, judgements in judgements_by_labeler.items():
        for j in judgements:
            by_prompt[j.prompt_id, name].append(j)
    for candidate in candidates:
        candidates_by_prompt[candidate.prompt_id].append(candidate)
    comparing = {name for name, labelled in judgements_by_labeler.items() if any(j.a is not None for j in labelled)}
    for prompt_id, prompt_candidates in candidates_by_prompt.items():
        members = [Member(voter, by_prompt[prompt_id, voter.labeler]) for voter in voters]
        compared_pairs = [m.preferred for m in members if m.name in comparing]
        # Which is `a` is random: an audit counts how often it is the better one.
        ordered = sorted(prompt_candidates, key=lambda c: content_id("ensemble", c.candidate_id))
        for a, b in combinations(ordered, 2):
            if all((a.candidate_id, b.candidate_id) in pairs for pairs in compared_pairs):
                yield join_votes(members, a, b)


def join_votes(members: Sequence[Member], a: Candidate, b: Candidate) -> JointVote:
    """What follows from the votes on two candidates."""
    ids = a.candidate_id, b.candidate_id
    if a.stripped_text == b.stripped_text:
        return JointVote(a.prompt_id, ids, {}, "tie")
    votes = {m.name: vote for m in members if (vote := m.vote(*ids)) is not None}
    vetoed = [any(m.vetoes(candidate) for m in members) for candidate in ids]
    if any(vetoed):
        return JointVote(a.prompt_id, ids, votes, VERDICTS[vetoed[1] - vetoed[0]], vetoed=True)
    weights = {m.name: m.weight for m in members}
    voting = sum(weights[name] for name in votes)
    if 2 * voting <= sum(weights.values()):
        return JointVote(a.prompt_id, ids, votes, None)
    mean = sum(weights[name] * vote for name, vote in votes.items()) / voting
    mean_square = sum(weights[name] * vote**2 for name, vote in votes.items()) / voting
    preference = VERDICTS[(mean > TIE_MARGIN) - (mean < -TIE_MARGIN)]
    return JointVote(a.prompt_id, ids, votes, preference, max(0.0, mean_square - mean**2))


class Ensemble(Labeler):
    """Joins what other label nodes say."""

    name = "ensemble"

    def __init__(self, cfg: Label, out: StageDir):
        self.cfg, self.out, self.tallies = cfg, out, dict[str, Any]()
        self.judgements_by_labeler = dict[str, list[Judgement]]()

    @classmethod
    def of(cls, cfg: Label, out: StageDir) -> "Ensemble":
        return cls(cfg, out)

    def pool(self, inputs: dict[str, Path]) -> Pool:
        """The pool that all members judged; their judgements are read beside it.

        Raises:
            UserError: for a veto of a member that gives no scores.
        """
        for i, voter in enumerate(self.cfg.voters):
            self.judgements_by_labeler[voter.labeler] = judgements = load(
                inputs[voter.labeler] / "judgements.parquet", Judgement
            )
            if voter.veto is not None and any(j.preference for j in judgements):
                raise UserError(f"label.ensemble.members[{i}].veto goes by a score, and {voter.labeler} gives none.")
        return super().pool(inputs)

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        return self.judge_all(Pool([prompt], candidates))

    def figures(self) -> dict[str, Any]:
        return {"ensemble": self.tallies}

    def judge_all(self, pool: Pool) -> Iterator[Judgement]:
        """What the members come to, and people where they were asked."""
        votes = [*joint_votes(self.cfg.voters, self.judgements_by_labeler, pool.candidates)]
        judged: dict[Key, Judgement] = {each.ids: judgement_of(each) for each in votes}
        self.tallies = count_votes(self.cfg, votes, self.judgements_by_labeler)
        if self.cfg.ensemble.people:
            self.ask_people(pool, votes, judged)
        yield from judged.values()

    def ask_people(self, pool: Pool, votes: Sequence[JointVote], judged: dict[Key, Judgement]) -> None:
        """Have people judge, first what is audited, then what is in doubt; the latter's judgements become theirs, also
        those of copies. Nobody is asked about the same two texts twice."""
        prompts, candidates = {p.id: p for p in pool.prompts}, {c.candidate_id: c for c in pool.candidates}

        def question_of(key: Key) -> Question:
            pair = [candidates[name] for name in key]
            return question(prompts[judged[key].prompt_id], pair, self.cfg.human.instructions or "")

        count = 0 if self.cfg.known else self.cfg.audit or 0
        audited = {
            key_of(j): question_of(key_of(j)) for j in draw_audit(countable(judged.values(), candidates), count)
        }
        audited_ids = {each.id for each in audited.values()}
        disputed = [each for each in votes if each.disagreement > 0]
        disputed.sort(key=lambda each: (-each.disagreement, content_id("doubt", each.ids)))
        disputed_questions = {each.ids: question_of(each.ids) for each in disputed}
        disputed_ids = [*dict.fromkeys(q.id for q in disputed_questions.values() if q.id not in audited_ids)]
        chosen_ids = {*disputed_ids[: self.cfg.ensemble.people]}
        questions = audited | {key: q for key, q in disputed_questions.items() if q.id in chosen_ids}
        by_id = {q.id: q for q in questions.values()}
        session = collect_answers(mark_shared([*by_id.values()], self.cfg.human), self.cfg.human, self.out)
        people_verdicts, changed = dict[Key, str](), 0
        for ids, question_asked in questions.items():
            [people_judgement] = of_people(question_asked, answer_rows.answers_of_question(question_asked, session))
            if people_judgement.preference is None:  # everybody skipped it
                continue
            preference = (
                people_judgement.preference
                if people_judgement.a == ids[0]
                else {"a": "b", "b": "a"}.get(people_judgement.preference, "tie")
            )
            if ids in audited:
                people_verdicts[ids] = preference
                continue
            changed += judged[ids].preference != preference
            raw = json.dumps(
                {**json.loads(judged[ids].raw or "{}"), "human": json.loads(people_judgement.raw or "{}")}
            )
            judged[ids] = Judgement(
                judged[ids].prompt_id, self.name, a=ids[0], b=ids[1], preference=preference, raw=raw
            )
        self.people_verdicts = people_verdicts
        self.tallies["people"] = {
            "audited": len(audited),
            "asked": len(chosen_ids),
            "in_doubt": len(disputed_ids),
            "changed": changed,
        }


def judgement_of(joint: JointVote) -> Judgement:
    """The members' own; `raw` says who voted for what."""
    votes_json = json.dumps({name: VERDICTS[vote] for name, vote in joint.votes.items()})
    a, b = joint.ids
    error = None if joint.preference else "members that say nothing of it weigh half or more"
    return Judgement(
        joint.prompt_id, Ensemble.name, a=a, b=b, preference=joint.preference, raw=votes_json, error=error
    )


def count_votes(
    cfg: Label, joint: Sequence[JointVote], judgements_by_labeler: Mapping[str, Sequence[Judgement]]
) -> dict[str, Any]:
    """How often each member votes, votes with the verdict, and vetoes; how often they disagree or a veto decides."""
    members = dict[str, dict[str, Any]]()
    for voter in cfg.voters:
        votes = [
            (VERDICTS[each.votes[voter.labeler]], each.preference) for each in joint if voter.labeler in each.votes
        ]
        members[voter.labeler] = {
            "weight": voter.weight,
            "votes": len(votes),
            "with_the_verdict": sum(vote == verdict for vote, verdict in votes) / len(votes) if votes else None,
        }
        if (veto := voter.veto) is not None:
            vetoes = sum(j.score is not None and j.score < veto for j in judgements_by_labeler[voter.labeler])
            members[voter.labeler] |= {"veto": veto, "vetoes": vetoes}
    return {
        "members": members,
        "comparisons": len(joint),
        "disagreements": sum(each.disagreement > 0 for each in joint),
        "vetoed": sum(each.vetoed for each in joint),
    }
