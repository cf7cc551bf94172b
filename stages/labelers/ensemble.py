"""`label=ensemble`: several labelers vote on two candidates of a prompt at a time. Each labeler is a separate node.

A labeler with scores votes for the candidate with the higher score; a labeler with preferences votes for the preferred
one. A further verdict is worth most where votes differ: query by committee (Seung, Opper & Sompolinsky 1992, COLT).

GRPO wants a score of every completion instead (`judge_rollouts`): the members' mean score, by their weights.

With `label.people`, people first judge the random sample of `label.audit`. Their verdicts on the sample
measure the ensemble's accuracy and change no judgement. Then people judge the comparisons with the most disagreement,
up to the budget, and these verdicts replace the ensemble's."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from stages.config.blocks.labels import PEOPLE, Ensemble, Voter
from stages.config.errors import UserError
from stages.evaluation.relative_scores import floors_by_prompt, quantiles_over_prompts
from stages.evaluation.reliability import OWN_VOTE, Key, countable, draw_audit, key_of
from stages.labelers.labeler import Labeler, Pool
from stages.labelers.making import make_labeler
from stages.labelers.questions import AsksPeople, Question, mark_shared, question
from stages.store import plugins
from stages.store.records import Candidate, Example, Judgement, content_id, load
from stages.store.workspace import StageDir

VERDICTS = {1: "a", 0: "tie", -1: "b"}
TIE_MARGIN = 1e-9  # a weighted mean of votes at most this far from 0 is a tie
CandidateIds = tuple[str, str]  # the ids of `a` and `b`


@dataclass(frozen=True)
class JointVote:
    """The members' votes on two candidates: 1 for `a`, -1 for `b`, 0 for a tie. Members without a vote are absent.
    `preference` is the weighted majority, or None if the votes have at most half of the total weight. `disagreement`
    is the weighted variance of the votes: 0 if unanimous, 1 if split in halves, and 0 if a veto decides."""

    prompt_id: str
    ids: CandidateIds
    votes: Mapping[str, int]
    preference: str | None
    disagreement: float = 0.0
    vetoed: bool = False


class Member:
    """A labeler of the ensemble with its judgements of one prompt's candidates."""

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
        """Return True if the member scored the candidate below its veto threshold."""
        return self.veto is not None and self.scores.get(candidate, self.veto) < self.veto


def joint_votes(
    voters: Sequence[Voter],
    by_labeler: Mapping[str, Iterable[Judgement]],
    candidates: Iterable[Candidate],
) -> Iterator[JointVote]:
    """Yield the joint votes on pairs of candidates, prompt by prompt. A pair is used if every member with preferences
    compared it; if all members give scores, all pairs are used. `by_labeler`: judgements by the member's name."""
    by_prompt = defaultdict[tuple[str, str], list[Judgement]](list)
    pools = defaultdict[str, list[Candidate]](list)
    for name, judgements in by_labeler.items():
        for j in judgements:
            by_prompt[j.prompt_id, name].append(j)
    for candidate in candidates:
        pools[candidate.prompt_id].append(candidate)
    comparing = {
        name for name, labelled in by_labeler.items() if any(j.a is not None for j in labelled)
    }
    for prompt_id, prompt_candidates in pools.items():
        members = [Member(voter, by_prompt[prompt_id, voter.labeler]) for voter in voters]
        compared_pairs = [m.preferred for m in members if m.name in comparing]
        # Hashes decide which candidate is `a`, because an audit measures how often `a` is the better one.
        ordered = sorted(prompt_candidates, key=lambda c: content_id("ensemble", c.candidate_id))
        for a, b in combinations(ordered, 2):
            if all((a.candidate_id, b.candidate_id) in pairs for pairs in compared_pairs):
                yield join_votes(members, a, b)


def join_votes(members: Sequence[Member], a: Candidate, b: Candidate) -> JointVote:
    """Return the members' joint vote on two candidates. Equal texts are a tie, and a veto overrides the majority."""
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


def find_vetoed(
    voter: Voter, member: Labeler, scores: Mapping[str, float], prompt_of: Mapping[str, str]
) -> set[str]:
    """Return the candidates whose score is below the member's veto threshold. A relative score is compared as its
    quantile within prompts, like the member's scores as a label."""
    threshold = voter.veto
    if threshold is None:
        return set()
    compared = quantiles_over_prompts(scores, prompt_of) if member.relative else scores
    return {name for name, score in compared.items() if score < threshold}


class EnsembleLabeler(Labeler):
    """Combines the judgements of other label nodes by weighted votes."""

    name = "ensemble"
    compares = True

    def __init__(self, cfg: Ensemble, out: StageDir):
        self.cfg, self.out, self.tallies = cfg, out, dict[str, Any]()
        self.by_labeler = dict[str, list[Judgement]]()

    def pool(self, inputs: dict[str, Path]) -> Pool:
        """Return the pool that all members judged, and load their judgements.
        Raise UserError if a member with a veto gives preferences instead of scores."""
        for i, voter in enumerate(self.cfg.members):
            self.by_labeler[voter.labeler] = judgements = load(
                inputs[voter.labeler] / "judgements.parquet", Judgement
            )
            if voter.veto is not None and any(j.preference for j in judgements):
                problem = f"a veto needs scores, and {voter.labeler} gives preferences"
                way_out = "Remove the veto, or use a labeler that gives scores."
                key = f"{self.cfg.block}.members[{i}].veto"
                raise UserError(f"{key}={voter.veto:g}: {problem}. {way_out}")
        return super().pool(inputs)

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        return self.judge_all(Pool([prompt], candidates))

    def figures(self) -> dict[str, Any]:
        return {"ensemble": self.tallies}

    @cached_property
    def members(self) -> list[tuple[Voter, Labeler]]:
        """The members as labelers, which the ensemble itself asks in every step of GRPO."""
        return [
            (voter, make_labeler(self.cfg.member_block(voter.labeler), self.out))
            for voter in self.cfg.members
        ]

    @property
    def relative(self) -> bool:  # type: ignore[override]
        """True if a member's scores are relative, and with them the mean."""
        return any(member.relative for _, member in self.members)

    @property
    def says_relative(self) -> bool:  # type: ignore[override]
        """True if every member says whether its scores are relative."""
        return all(member.says_relative for _, member in self.members)

    @property
    def reads_columns(self) -> bool:  # type: ignore[override]
        """True if a member takes the user's columns, and is asked here: not of the members' own nodes."""
        return any(member.reads_columns for _, member in self.members)

    def judge_rollouts(self, pool: Pool) -> Iterator[Judgement]:
        """Yield judgements whose score is the members' mean score, by their weights. A completion that a member vetoes
        gets the floor of its prompt; one without a score of every member gets an error."""
        scores_by_voter, errors = self.rollout_scores(pool)
        prompt_of = {c.candidate_id: c.prompt_id for c in pool.candidates}
        vetoed_ids = {
            candidate
            for i, (voter, member) in enumerate(self.members)
            for candidate in find_vetoed(voter, member, scores_by_voter[i], prompt_of)
        }
        weights = [voter.weight for voter, _ in self.members]
        means = {
            name: sum(w * scores[name] for w, scores in zip(weights, scores_by_voter, strict=True))
            / sum(weights)
            for name in prompt_of
            if name not in errors
        }
        accepted: dict[str, list[float]] = {prompt: [] for prompt in prompt_of.values()}
        for name, mean in means.items():
            if name not in vetoed_ids:
                accepted[prompt_of[name]].append(mean)
        floors = floors_by_prompt(accepted, self.relative)
        for name, prompt in prompt_of.items():
            score = means.get(name)
            if score is not None and name in vetoed_ids:
                # All completions of a prompt may be vetoed: they are equally bad.
                floor = floors.get(prompt, 0.0)
                score = floor if self.relative else min(floor, score)
            yield Judgement(prompt, self.name, name, score=score, error=errors.get(name))

    def rollout_scores(self, pool: Pool) -> tuple[list[dict[str, float]], dict[str, str]]:
        """Return the scores of every member by candidate, and by candidate the error of a member without a score."""
        scores_by_voter, errors = list[dict[str, float]](), dict[str, str]()
        for voter, member in self.members:
            judgements = {j.candidate_id: j for j in member.judge_rollouts(pool)}
            scores = dict[str, float]()
            for c in pool.candidates:
                judgement = judgements.get(c.candidate_id)
                if judgement is not None and judgement.score is not None:
                    scores[c.candidate_id] = judgement.score
                    continue
                reason = (judgement and judgement.error) or "no score"
                errors.setdefault(c.candidate_id, f"{voter.labeler}: {reason}")
            scores_by_voter.append(scores)
        return scores_by_voter, errors

    def judge_all(self, pool: Pool) -> Iterator[Judgement]:
        """Yield the ensemble's judgements, and people's verdicts on the comparisons that people were asked about."""
        votes = [*joint_votes(self.cfg.members, self.by_labeler, pool.answers())]
        judged: dict[Key, Judgement] = {each.ids: judgement_of(each) for each in votes}
        self.tallies = count_votes(self.cfg, votes, self.by_labeler)
        if self.cfg.people:
            self.ask_people(pool, votes, judged)
        yield from judged.values()

    def ask_people(
        self, pool: Pool, votes: Sequence[JointVote], judged: dict[Key, Judgement]
    ) -> None:
        """Ask people about the audit sample, then about the comparisons with the most disagreement. Verdicts on the
        latter replace the judgements in `judged`, copies included. The same two texts are asked about only once."""
        prompts = {p.id: p for p in pool.prompts}
        candidates = {c.candidate_id: c for c in pool.answers()}

        def question_of(key: Key) -> Question:
            pair = [candidates[name] for name in key]
            return question(prompts[judged[key].prompt_id], pair, self.cfg.human.instructions)

        count = 0 if self.cfg.known else self.cfg.audit or 0
        sample = draw_audit(countable(judged.values(), candidates), count)
        audited = {key_of(j): question_of(key_of(j)) for j in sample}
        audited_ids = {each.id for each in audited.values()}
        disputed = [each for each in votes if each.disagreement > 0]
        disputed.sort(key=lambda each: (-each.disagreement, content_id("doubt", each.ids)))
        disputed_questions = {each.ids: question_of(each.ids) for each in disputed}
        disputed_ids = [
            *dict.fromkeys(q.id for q in disputed_questions.values() if q.id not in audited_ids)
        ]
        chosen_ids = {*disputed_ids[: self.cfg.people]}
        questions = audited | {
            key: q for key, q in disputed_questions.items() if q.id in chosen_ids
        }
        by_id = {q.id: q for q in questions.values()}
        shared = mark_shared([*by_id.values()], self.cfg.human)
        people = plugins.load_class("labelers", PEOPLE, AsksPeople)  # type: ignore[type-abstract]
        answers = people.ask(shared, self.cfg.human_block, self.out)
        people_verdicts, changed = dict[Key, str](), 0
        for ids, asked_question in questions.items():
            [verdict] = answers[asked_question.id]
            if (preference := verdict.preference) is None:  # all people skipped the question
                continue
            # the question of other candidates with these texts has them in the same order
            if asked_question.candidates[0].candidate_id != ids[0]:
                preference = {"a": "b", "b": "a"}.get(preference, "tie")
            if ids in audited:
                people_verdicts[ids] = preference
                continue
            changed += judged[ids].preference != preference
            own = {OWN_VOTE: judged[ids].preference, "human": json.loads(verdict.raw or "{}")}
            raw = json.dumps(json.loads(judged[ids].raw or "{}") | own)
            prompt_id, (a, b) = judged[ids].prompt_id, ids
            judged[ids] = Judgement(prompt_id, self.name, a=a, b=b, preference=preference, raw=raw)
        self.people_verdicts = people_verdicts
        counts = {
            "audited": len(audited),
            "asked": len(chosen_ids),
            "in_doubt": len(disputed_ids),
            "changed": changed,
        }
        self.tallies["people"] = counts


def judgement_of(joint: JointVote) -> Judgement:
    """Return a joint vote as a judgement, with each member's vote in `raw`."""
    raw = json.dumps({name: VERDICTS[vote] for name, vote in joint.votes.items()})
    (a, b), preference = joint.ids, joint.preference
    error = None if preference else "members with half of the weight or more gave no verdict"
    return Judgement(
        joint.prompt_id, EnsembleLabeler.name, a=a, b=b, preference=preference, raw=raw, error=error
    )


def count_votes(
    cfg: Ensemble, joint: Sequence[JointVote], by_labeler: Mapping[str, list[Judgement]]
) -> dict[str, Any]:
    """Return how often each member votes, agrees with the result and vetoes, and how often members disagree."""
    members = dict[str, dict[str, Any]]()
    for voter in cfg.members:
        name = voter.labeler
        votes = [
            (VERDICTS[each.votes[name]], each.preference) for each in joint if name in each.votes
        ]
        members[name] = {
            "weight": voter.weight,
            "votes": len(votes),
            "with_the_verdict": sum(vote == verdict for vote, verdict in votes) / len(votes)
            if votes
            else None,
        }
        if (veto := voter.veto) is not None:
            vetoes = sum(j.score is not None and j.score < veto for j in by_labeler[name])
            members[name] |= {"veto": veto, "vetoes": vetoes}
    return {
        "members": members,
        "comparisons": len(joint),
        "disagreements": sum(each.disagreement > 0 for each in joint),
        "vetoed": sum(each.vetoed for each in joint),
    }
