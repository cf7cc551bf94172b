"""`label=ensemble`: several labelers, each a label node of its own, vote on two candidates at a time
(`vote_joining.py`); people are asked where these disagree.

With `label.ensemble.people`, the judgements that `label.audit` sets aside are asked about first: they are drawn at
random, people's words on them say how often the ensemble is right, and change no judgement. Then come those on which
the members disagree most, as many as the budget has; what people say of these is the judgement.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.config.blocks.labels import Label
from stages.config.errors import UserError
from stages.evaluation.reliability import Key, decided, key_of, set_aside
from stages.labelers.human import judgements as of_people
from stages.labelers.labeler import Labeler, Pool
from stages.labelers.people import answer_rows
from stages.labelers.people.asking import answered
from stages.labelers.people.questions import Question, overlapping, question
from stages.labelers.vote_joining import WORDS, Joined, joined
from stages.store.records import Candidate, Example, Judgement, content_id, load
from stages.store.workspace import Work


class Ensemble(Labeler):
    """Joins what other label nodes say."""

    name = "ensemble"

    def __init__(self, cfg: Label, out: Work):
        self.cfg, self.out, self.told = cfg, out, dict[str, Any]()
        self.said = dict[str, list[Judgement]]()

    @classmethod
    def of(cls, cfg: Label, out: Work) -> "Ensemble":
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

    def ask(self, pool: Pool, found: Sequence[Joined], judged: dict[Key, Judgement]) -> None:
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


def judgement(each: Joined) -> Judgement:
    """The members' own; `raw` says who voted for what."""
    told = json.dumps({name: WORDS[vote] for name, vote in each.votes.items()})
    a, b = each.of
    error = None if each.preference else "members that say nothing of it weigh half or more"
    return Judgement(each.prompt_id, Ensemble.name, a=a, b=b, preference=each.preference, raw=told, error=error)


def tally(cfg: Label, found: Sequence[Joined], said: Mapping[str, Sequence[Judgement]]) -> dict[str, Any]:
    """How often members vote, and with the verdict, and how many candidates each vetoes; how often they disagree, and
    a veto decides."""
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
