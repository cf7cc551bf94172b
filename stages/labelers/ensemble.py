"""`label=ensemble`: several labelers vote on two candidates of a prompt at a time. Each labeler is a separate node.

A labeler with scores votes for the candidate with the higher score; a labeler with preferences votes for the preferred
one. A further verdict is worth most where votes differ: query by committee (Seung, Opper & Sompolinsky 1992, COLT).

An objective that draws wants a score of every completion instead (`judge_rollouts`): the members' mean score, by their weights.

With `combine: gate` nobody votes, here and in GRPO. A member with a veto is a gate, and the mean score of the others is
the quality, which ranks what passes (`gated_scores`).

With `label.people`, people first judge the random sample of `label.audit`. Their verdicts on the sample
measure the ensemble's accuracy and change no judgement. Then people judge the comparisons with the most disagreement,
up to the budget, and these verdicts replace the ensemble's."""

import json
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from stages.config.blocks.labels import HUMAN, Ensemble, Voter
from stages.config.errors import UserError
from stages.evaluation.relative_scores import Gather, floors_by_prompt, quantiles_over_prompts
from stages.evaluation.reliability import OWN_VOTE, Key, countable, draw_audit, key_of
from stages.labelers.gated_scores import scores_of_passing
from stages.labelers.labeler import Labeler, Pool
from stages.labelers.making import make_labeler
from stages.labelers.questions import AsksHumans, Question, mark_shared, question
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


def scores_of(
    voter: Voter, judgements: Iterable[Judgement], candidates: Iterable[Candidate]
) -> tuple[dict[str, float], dict[str, str]]:
    """Return a member's scores by candidate, and the errors of the candidates without one."""
    by_candidate = {j.candidate_id: j for j in judgements}
    scores, errors = dict[str, float](), dict[str, str]()
    for candidate in candidates:
        name = candidate.candidate_id
        judgement = by_candidate.get(name)
        if judgement is not None and judgement.score is not None:
            scores[name] = judgement.score
            continue
        reason = (judgement and judgement.error) or "no score"
        errors[name] = f"{voter.labeler}: {reason}"
    return scores, errors


def find_vetoed(
    voter: Voter,
    member: Labeler,
    scores: Mapping[str, float],
    prompt_of: Mapping[str, str],
    gather: Gather,
) -> set[str]:
    """Return the candidates whose score is below the member's veto threshold. A relative score is compared as its
    quantile within the prompts of all processes, like the member's scores as a label."""
    threshold = voter.veto
    if threshold is None:
        return set()
    compared = scores
    if member.relative:
        compared = quantiles_over_prompts(scores, prompt_of, gather)
    return {name for name, score in compared.items() if score < threshold}


def mean_scores(
    voters: Sequence[Voter], scores_by_voter: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Return the mean score, by the voters' weights, of every candidate that all of them score."""
    total = sum(voter.weight for voter in voters)
    complete_ids = set[str].intersection(*map(set, scores_by_voter))
    means = dict[str, float]()
    for name in complete_ids:
        pairs = zip(voters, scores_by_voter, strict=True)
        means[name] = sum(voter.weight * scores[name] for voter, scores in pairs) / total
    return means


class EnsembleLabeler(Labeler):
    """Combines the judgements of other label nodes by weighted votes, or by gates and a quality."""

    name = "ensemble"

    def __init__(self, cfg: Ensemble, out: StageDir):
        self.cfg, self.out, self.tallies = cfg, out, dict[str, Any]()
        self.compares = cfg.prefers
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
        """The members as labelers, which the ensemble itself asks in every step that draws."""
        return [
            (voter, make_labeler(self.cfg.member_block(voter.labeler), self.out))
            for voter in self.cfg.members
        ]

    @property
    def gates(self) -> list[tuple[Voter, Labeler]]:
        """The members with a veto."""
        return [(voter, member) for voter, member in self.members if voter.is_gate]

    @property
    def rankers(self) -> list[tuple[Voter, Labeler]]:
        """The members without a veto."""
        return [(voter, member) for voter, member in self.members if not voter.is_gate]

    @property
    def relative(self) -> bool:  # type: ignore[override]
        """True if a member's scores are relative, and with them the mean. A gated score is absolute: 0 fails."""
        if self.cfg.combine:
            return False
        return any(member.relative for _, member in self.members)

    @property
    def says_relative(self) -> bool:  # type: ignore[override]
        """True if every member says whether its scores are relative. Of the quality behind gates nobody need know."""
        members = self.gates if self.cfg.combine else self.members
        return all(member.says_relative for _, member in members)

    @property
    def reads_columns(self) -> bool:  # type: ignore[override]
        """True if a member takes the user's columns, and is asked here: not of the members' own nodes."""
        return any(member.reads_columns for _, member in self.members)

    def judge_rollouts(self, pool: Pool) -> Iterator[Judgement]:
        """Yield judgements whose score is the members' mean score, by their weights. A completion that a member vetoes
        gets the floor of its prompt; one without a score of every member gets an error. With gates, yield gated scores."""
        if self.cfg.combine:
            yield from self.gate_rollouts(pool)
            return
        scores_by_voter, errors = self.rollout_scores(self.members, pool)
        prompt_of = {c.candidate_id: c.prompt_id for c in pool.candidates}
        vetoed_ids = self.vetoed(self.members, scores_by_voter, prompt_of, pool.gather)
        means = mean_scores([voter for voter, _ in self.members], scores_by_voter)
        accepted: dict[str, list[float]] = {prompt: [] for prompt in prompt_of.values()}
        for name, prompt in prompt_of.items():
            if name in means and name not in vetoed_ids:
                accepted[prompt].append(means[name])
        floors = floors_by_prompt(accepted, self.relative, pool.gather)
        for name, prompt in prompt_of.items():
            score = means.get(name)
            if score is not None and name in vetoed_ids:
                # All completions of a prompt may be vetoed: they are equally bad.
                floor = floors.get(prompt, 0.0)
                score = floor if self.relative else min(floor, score)
            yield Judgement(prompt, self.name, name, score=score, error=errors.get(name))

    def gate_rollouts(self, pool: Pool) -> Iterator[Judgement]:
        """Yield the gated scores of completions. Only what passes the gates is shown to the members that rank, which
        may cost money."""
        gate_scores, errors = self.rollout_scores(self.gates, pool)
        prompt_of = {c.candidate_id: c.prompt_id for c in pool.candidates}
        failed_ids = self.vetoed(self.gates, gate_scores, prompt_of, pool.gather)
        passing = [
            c
            for c in pool.candidates
            if c.candidate_id not in failed_ids and c.candidate_id not in errors
        ]
        prompt_ids = {c.prompt_id for c in passing}
        prompts = [prompt for prompt in pool.prompts if prompt.id in prompt_ids]
        pool_of_passing = pool._replace(prompts=prompts, candidates=passing)
        ranker_scores, ranker_errors = self.rollout_scores(self.rankers, pool_of_passing)
        qualities = mean_scores([voter for voter, _ in self.rankers], ranker_scores)
        scores = self.gated_scores(failed_ids, qualities, prompt_of, pool)
        errors |= ranker_errors
        for name, prompt in prompt_of.items():
            error = None if name in scores else errors[name]
            yield Judgement(prompt, self.name, name, score=scores.get(name), error=error)

    def gated_scores(
        self,
        failed_ids: Container[str],
        qualities: Mapping[str, float],
        prompt_of: Mapping[str, str],
        pool: Pool,
    ) -> dict[str, float]:
        """Return by candidate 0 if it fails, else its score by its quality. One without a quality is absent."""
        scores = dict[str, float]()
        qualities_by_prompt = defaultdict[str, dict[str, float]](dict)
        for name, prompt in prompt_of.items():
            if name in failed_ids:
                scores[name] = 0.0
            elif name in qualities:
                qualities_by_prompt[prompt][name] = qualities[name]
        return scores | scores_of_passing(qualities_by_prompt, pool.gather)

    def vetoed(
        self,
        members: Sequence[tuple[Voter, Labeler]],
        scores_by_voter: Sequence[Mapping[str, float]],
        prompt_of: Mapping[str, str],
        gather: Gather,
    ) -> set[str]:
        """Return the candidates that one of these members vetoes."""
        vetoed_ids = set[str]()
        for (voter, member), scores in zip(members, scores_by_voter, strict=True):
            vetoed_ids |= find_vetoed(voter, member, scores, prompt_of, gather)
        return vetoed_ids

    def rollout_scores(
        self, members: Sequence[tuple[Voter, Labeler]], pool: Pool
    ) -> tuple[list[dict[str, float]], dict[str, str]]:
        """Return the scores of every member by candidate, and by candidate the error of a member without a score."""
        scores_by_voter, errors = list[dict[str, float]](), dict[str, str]()
        for voter, member in members:
            judgements: Iterable[Judgement] = []
            # a class of the user's need not expect an empty pool; a reward model takes one, to be loaded early
            if pool.candidates or not member.own:
                judgements = member.judge_rollouts(pool)
            scores, member_errors = scores_of(voter, judgements, pool.candidates)
            scores_by_voter.append(scores)
            errors = member_errors | errors
        return scores_by_voter, errors

    def judge_all(self, pool: Pool) -> Iterator[Judgement]:
        """Yield the ensemble's judgements, and people's verdicts on the comparisons that people were asked about."""
        if self.cfg.combine:
            yield from self.gate_labels(pool)
            return
        votes = [*joint_votes(self.cfg.members, self.by_labeler, pool.answers())]
        judged: dict[Key, Judgement] = {each.ids: judgement_of(each) for each in votes}
        self.tallies = count_votes(self.cfg, votes, self.by_labeler)
        if self.cfg.people:
            self.ask_people(pool, votes, judged)
        yield from judged.values()

    def gate_labels(self, pool: Pool) -> Iterator[Judgement]:
        """Yield half of each gated score, since the scores of labels go to 1: 0, or one from 0.5 to 1. z is by all
        prompts of the pool. `raw` has each member's score."""
        candidates = [*pool.candidates]
        prompt_of = {c.candidate_id: c.prompt_id for c in candidates}
        scores_by_labeler = dict[str, dict[str, float]]()
        failed_ids, errors = set[str](), dict[str, str]()
        tallies = dict[str, Any]()
        for voter in self.cfg.members:
            judgements = self.by_labeler[voter.labeler]
            scores, member_errors = scores_of(voter, judgements, candidates)
            scores_by_labeler[voter.labeler] = scores
            errors = member_errors | errors
            if voter.veto is not None:
                vetoed_ids = {name for name, score in scores.items() if score < voter.veto}
                failed_ids |= vetoed_ids
                tallies[voter.labeler] = {"veto": voter.veto, "vetoes": len(vetoed_ids)}
        rankers = [voter for voter in self.cfg.members if not voter.is_gate]
        qualities = mean_scores(rankers, [scores_by_labeler[each.labeler] for each in rankers])
        complete = {name: quality for name, quality in qualities.items() if name not in errors}
        gated = self.gated_scores(failed_ids, complete, prompt_of, pool)
        self.tallies = {"gates": tallies, "failed": len(failed_ids), "ranked": len(complete)}
        for name, prompt in prompt_of.items():
            score = error = None
            if name in gated:
                score = gated[name] / 2
            else:
                error = errors[name]
            member_scores = {
                labeler: scores[name]
                for labeler, scores in scores_by_labeler.items()
                if name in scores
            }
            raw = json.dumps(member_scores)
            yield Judgement(prompt, self.name, name, score=score, raw=raw, error=error)

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
        people = plugins.load_class("labelers", HUMAN, AsksHumans)  # type: ignore[type-abstract]
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
