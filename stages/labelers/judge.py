"""`label=judge`: models at endpoints judge candidates by a rubric (`pip install -e '.[endpoints]'`).

Pairwise, two candidates are shown in both orders, and a judge that does not choose the same of them both times has
seen a tie (position bias: Zheng et al. 2023, arXiv:2306.05685). Pointwise, each candidate gets a score. Several judges
come together as their majority, or their mean. Of two judges that is unanimity: what they differ on is a tie, and what
one of them gives no verdict on is missing. What is no verdict is missing, with its reason.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

from stages.config.blocks.labels import Label
from stages.config.choices import Reading, Rubrics
from stages.config.errors import UserError
from stages.endpoints.client import Client, Question
from stages.endpoints.reply import NoReply
from stages.endpoints.together import answers
from stages.labelers.labeler import Labeler, Pool, pair_up
from stages.labelers.rubric import SYSTEM, Rubric
from stages.labelers.verdicts import SCALE, SWAPPED, NoVerdict, json_value, one_key_schema, verdict
from stages.store.numbers import numbered
from stages.store.records import Candidate, Example, Judgement
from stages.store.workspace import Progress, StageDir

PROBE, WORD = "Say in a sentence what the weather is like at the sea.", "plumb"


class Vote(NamedTuple):
    """What one judge says of a candidate (a score in [0, 1]) or of two (a, b or tie); or why it says nothing."""

    value: Any = None
    error: str | None = None
    orders_agree: bool | None = None  # with itself, asked in the other order
    raw: Any = None  # its replies


class Jury(Labeler):
    """Asks every judge about every candidate, or about two of a prompt's candidates at a time."""

    name = "judge"

    def __init__(self, cfg: Label, out: StageDir):
        self.cfg, self.out, self.rubric = cfg.judge, out, Rubric(cfg.judge)
        self.max_failed, self.disagreements = cfg.max_failed, 0
        self.judges = [Client(e, f"label.judge.endpoints[{i}]", out) for i, e in enumerate(self.cfg.endpoints or ())]
        self.names = numbered([str(judge.endpoint.model) for judge in self.judges])

    @classmethod
    def of(cls, cfg: Label, out: StageDir) -> "Jury":
        return cls(cfg, out)

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        return self.judge_all(Pool([prompt], candidates))

    def judge_all(self, pool: Pool) -> Iterator[Judgement]:
        """Yield judgements in the order in which they are made.

        Raises:
            UserError: where a judge does not keep to a schema; as soon as more judgements than `max_failed` allows
                are missing; where a budget is spent.
        """
        questions = list(self.questions(pool))
        texts_differ = any(len({c.stripped_text for c in candidates}) > 1 for _, candidates in pool.by_prompt())
        if self.rubric.reading is Reading.json and (texts_differ or self.rubric.kind is Rubrics.pointwise):
            list(answers(self.judges, [partial(self.probe, judge) for judge in self.judges], self.out))
        failed = Counter[str]()
        with (
            Progress(len(questions), f"label {self.name}", "judgement") as progress,
            closing(answers(self.judges, questions, self.out)) as judgements,
        ):
            for judgement in judgements:
                failed.update([judgement.error] if judgement.error else [])
                if failed.total() > self.max_failed * len(questions):
                    error, count = failed.most_common(1)[0]
                    raise UserError(
                        f"{failed.total()} of {len(questions)} judgements are missing already, more than label.max_failed="
                        f"{self.max_failed:g} allows; most often ({count} times): {error}. What was answered is kept."
                    )
                yield judgement
                progress.update()
        if len(self.judges) == 2 and self.rubric.kind is Rubrics.pairwise:
            self.out.say(
                "label.judge.endpoints: two judges must agree. A comparison on which they differ is a tie, as are "
                f"{self.disagreements} of {len(questions)}. A third judge would decide."
            )

    def figures(self) -> dict[str, Any]:
        """Return on how many comparisons several judges differ."""
        return (
            {"judges_differ": self.disagreements}
            if len(self.judges) > 1 and self.rubric.kind is Rubrics.pairwise
            else {}
        )

    def questions(self, pool: Pool) -> Iterator[partial[Coroutine[Any, Any, Judgement]]]:
        """What makes each judgement."""
        for prompt, candidates in pool.by_prompt():
            if self.rubric.kind is Rubrics.pointwise:
                yield from (partial(self.judge_score, prompt, candidate) for candidate in candidates)
            else:
                pairs = pair_up(candidates, self.cfg.comparisons, self.cfg.seed or 0)
                yield from (partial(self.judge_preference, prompt, a, b) for a, b in pairs)

    async def probe(self, judge: Client) -> None:
        """Require that a server keeps to a schema where a model left to itself would not. A server whose kept answer
        did not is asked afresh: that answer may be of an earlier time, when another server was there."""
        schema = one_key_schema("word", {"type": "string", "enum": [WORD]})
        messages = [{"role": "system", "content": SYSTEM.format(mark="0")}, {"role": "user", "content": PROBE}]
        problem = ""
        for fresh in (False, True):
            try:
                reply_text = (await judge.ask(Question(messages, 64, 0.0, 0, response_format=schema), fresh)).text
                problem = f"it said {reply_text[:60]!r}"
                json_value(reply_text, "word", (WORD,))
                return
            except NoReply as error:
                problem = error.reason
            except NoVerdict:
                continue
        raise UserError(
            f"{judge.name}: {judge.endpoint.model} at {judge.endpoint.base_url} does not keep to a json_schema "
            f"({problem}), so its verdicts could be anything. label.judge.reading=text reads a last line of words."
        )

    async def judge_score(self, prompt: Example, candidate: Candidate) -> Judgement:
        """The mean of the judges' scores."""
        votes = await asyncio.gather(*(self.score(judge, prompt, candidate) for judge in self.judges))
        cast, error = cast_votes(votes)
        score = None if error else fmean(vote.value for vote in cast)
        return Judgement(
            prompt.id, self.name, candidate.candidate_id, score=score, raw=self.raw_replies(votes), error=error
        )

    async def judge_preference(self, prompt: Example, a: Candidate, b: Candidate) -> Judgement:
        """What more than half of the judges prefer; else a tie. Equal texts are one without being asked about."""
        judgement = partial(Judgement, prompt.id, self.name, a=a.candidate_id, b=b.candidate_id)
        if a.stripped_text == b.stripped_text:
            return judgement(preference="tie")
        votes = await asyncio.gather(*(self.preference(judge, prompt, a, b) for judge in self.judges))
        cast, error = cast_votes(votes)
        if error:
            return judgement(raw=self.raw_replies(votes), error=error)
        self.disagreements += len({vote.value for vote in cast}) > 1
        favourite, count = Counter(vote.value for vote in cast).most_common(1)[0]
        return judgement(
            preference=favourite if 2 * count > len(cast) else "tie",
            order_swapped_agrees=all(vote.orders_agree for vote in cast),
            raw=self.raw_replies(votes),
        )

    async def score(self, judge: Client, prompt: Example, candidate: Candidate) -> Vote:
        verdict_score, reply, error = await self.ask_verdict(judge, prompt, [candidate.text])
        return Vote(None if error else (verdict_score - SCALE[0]) / (SCALE[-1] - SCALE[0]), error, None, reply)

    async def preference(self, judge: Client, prompt: Example, a: Candidate, b: Candidate) -> Vote:
        (first, ab, error), (second, ba, swapped_error) = await asyncio.gather(
            self.ask_verdict(judge, prompt, [a.text, b.text]), self.ask_verdict(judge, prompt, [b.text, a.text])
        )
        raw = {"ab": ab, "ba": ba}
        if failure := error or swapped_error:
            return Vote(None, failure, None, raw)
        agrees = first == SWAPPED[second]
        return Vote(first.lower() if agrees else "tie", None, agrees, raw)

    async def ask_verdict(
        self, judge: Client, prompt: Example, texts: Sequence[str]
    ) -> tuple[Any, dict[str, str] | None, str | None]:
        """Return a judge's verdict, its reply, and the reason where there is no verdict. After a reply without one the
        next attempt has another seed; after no reply the same: no fault on the way decides which reply counts."""
        stored_reply = reason = None
        seed = 0
        for _ in range(self.cfg.attempts or 1):
            try:
                reply = await judge.ask(self.rubric.question(prompt.messages, texts, seed))
                stored_reply = {"text": reply.text, "finish_reason": reply.finish_reason}
                return verdict(reply, self.rubric.kind, self.rubric.reading), stored_reply, None
            except NoReply as error:
                reason = error.reason
            except NoVerdict as error:
                reason, seed = error.reason, seed + 1
        return None, stored_reply, reason

    def raw_replies(self, votes: Sequence[Vote]) -> str:
        """Every judge's replies, as JSON by its name: its model's, with a number where several endpoints have it."""
        return json.dumps({name: vote.raw for name, vote in zip(self.names, votes, strict=True)})


def cast_votes(votes: Sequence[Vote]) -> tuple[list[Vote], str | None]:
    """The votes that were given; where those are not more than half, the reason that is missing most often."""
    cast = [vote for vote in votes if vote.error is None]
    reasons = Counter(vote.error for vote in votes if vote.error)
    return cast, None if 2 * len(cast) > len(votes) else reasons.most_common(1)[0][0]
