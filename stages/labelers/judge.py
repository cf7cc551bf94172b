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
from stages.labelers.labeler import Labeler, Pool, compared
from stages.labelers.rubric import SYSTEM, Rubric
from stages.labelers.verdicts import SCALE, SWAPPED, NoVerdict, in_json, one_key, verdict
from stages.store.numbers import numbered
from stages.store.records import Candidate, Example, Judgement
from stages.store.workspace import Progress, StageDir

PROBE, WORD = "Say in a sentence what the weather is like at the sea.", "plumb"


class Vote(NamedTuple):
    """What one judge says of a candidate (a score in [0, 1]) or of two (a, b or tie); or why it says nothing."""

    value: Any = None
    error: str | None = None
    agrees: bool | None = None  # with itself, asked in the other order
    raw: Any = None  # its replies


class Jury(Labeler):
    """Asks every judge about every candidate, or about two of a prompt's candidates at a time."""

    name = "judge"

    def __init__(self, cfg: Label, out: StageDir):
        self.cfg, self.out, self.rubric = cfg.judge, out, Rubric(cfg.judge)
        self.max_failed, self.differ = cfg.max_failed, 0
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
        asked = list(self.questions(pool))
        unlike = any(len({c.stripped_text for c in candidates}) > 1 for _, candidates in pool.by_prompt())
        if self.rubric.reading is Reading.json and (unlike or self.rubric.kind is Rubrics.pointwise):
            list(answers(self.judges, [partial(self.probe, judge) for judge in self.judges], self.out))
        failed = Counter[str]()
        with (
            Progress(len(asked), f"label {self.name}", "judgement") as progress,
            closing(answers(self.judges, asked, self.out)) as made,
        ):
            for judgement in made:
                failed.update([judgement.error] if judgement.error else [])
                if failed.total() > self.max_failed * len(asked):
                    error, count = failed.most_common(1)[0]
                    raise UserError(
                        f"{failed.total()} of {len(asked)} judgements are missing already, more than label.max_failed="
                        f"{self.max_failed:g} allows; most often ({count} times): {error}. What was answered is kept."
                    )
                yield judgement
                progress.update()
        if len(self.judges) == 2 and self.rubric.kind is Rubrics.pairwise:
            self.out.say(
                "label.judge.endpoints: two judges must agree. A comparison on which they differ is a tie, as are "
                f"{self.differ} of {len(asked)}. A third judge would decide."
            )

    def figures(self) -> dict[str, Any]:
        """Return on how many comparisons several judges differ."""
        return {"judges_differ": self.differ} if len(self.judges) > 1 and self.rubric.kind is Rubrics.pairwise else {}

    def questions(self, pool: Pool) -> Iterator[partial[Coroutine[Any, Any, Judgement]]]:
        """What makes each judgement."""
        for prompt, candidates in pool.by_prompt():
            if self.rubric.kind is Rubrics.pointwise:
                yield from (partial(self.scored, prompt, candidate) for candidate in candidates)
            else:
                pairs = compared(candidates, self.cfg.comparisons, self.cfg.seed or 0)
                yield from (partial(self.preferred, prompt, a, b) for a, b in pairs)

    async def probe(self, judge: Client) -> None:
        """Require that a server keeps to a schema where a model left to itself would not. A server whose kept answer
        did not is asked afresh: that answer may be of an earlier time, when another server was there."""
        schema = one_key("word", {"type": "string", "enum": [WORD]})
        messages = [{"role": "system", "content": SYSTEM.format(mark="0")}, {"role": "user", "content": PROBE}]
        saw = ""
        for fresh in (False, True):
            try:
                said = (await judge.ask(Question(messages, 64, 0.0, 0, response_format=schema), fresh)).text
                saw = f"it said {said[:60]!r}"
                in_json(said, "word", (WORD,))
                return
            except NoReply as error:
                saw = error.reason
            except NoVerdict:
                continue
        raise UserError(
            f"{judge.name}: {judge.endpoint.model} at {judge.endpoint.base_url} does not keep to a json_schema "
            f"({saw}), so its verdicts could be anything. label.judge.reading=text reads a last line of words."
        )

    async def scored(self, prompt: Example, candidate: Candidate) -> Judgement:
        """The mean of the judges' scores."""
        votes = await asyncio.gather(*(self.score(judge, prompt, candidate) for judge in self.judges))
        given, error = present(votes)
        score = None if error else fmean(vote.value for vote in given)
        return Judgement(prompt.id, self.name, candidate.candidate_id, score=score, raw=self.said(votes), error=error)

    async def preferred(self, prompt: Example, a: Candidate, b: Candidate) -> Judgement:
        """What more than half of the judges prefer; else a tie. Equal texts are one without being asked about."""
        judgement = partial(Judgement, prompt.id, self.name, a=a.candidate_id, b=b.candidate_id)
        if a.stripped_text == b.stripped_text:
            return judgement(preference="tie")
        votes = await asyncio.gather(*(self.preference(judge, prompt, a, b) for judge in self.judges))
        given, error = present(votes)
        if error:
            return judgement(raw=self.said(votes), error=error)
        self.differ += len({vote.value for vote in given}) > 1
        most, count = Counter(vote.value for vote in given).most_common(1)[0]
        return judgement(
            preference=most if 2 * count > len(given) else "tie",
            order_swapped_agrees=all(vote.agrees for vote in given),
            raw=self.said(votes),
        )

    async def score(self, judge: Client, prompt: Example, candidate: Candidate) -> Vote:
        found, said, error = await self.asked(judge, prompt, [candidate.text])
        return Vote(None if error else (found - SCALE[0]) / (SCALE[-1] - SCALE[0]), error, None, said)

    async def preference(self, judge: Client, prompt: Example, a: Candidate, b: Candidate) -> Vote:
        (first, ab, error), (second, ba, swapped_error) = await asyncio.gather(
            self.asked(judge, prompt, [a.text, b.text]), self.asked(judge, prompt, [b.text, a.text])
        )
        raw = {"ab": ab, "ba": ba}
        if failed := error or swapped_error:
            return Vote(None, failed, None, raw)
        agrees = first == SWAPPED[second]
        return Vote(first.lower() if agrees else "tie", None, agrees, raw)

    async def asked(
        self, judge: Client, prompt: Example, texts: Sequence[str]
    ) -> tuple[Any, dict[str, str] | None, str | None]:
        """Return a judge's verdict, its reply, and the reason where there is no verdict. After a reply without one the
        next attempt has another seed; after no reply the same: no fault on the way decides which reply counts."""
        said = reason = None
        seed = 0
        for _ in range(self.cfg.attempts or 1):
            try:
                reply = await judge.ask(self.rubric.question(prompt.messages, texts, seed))
                said = {"text": reply.text, "finish_reason": reply.finish_reason}
                return verdict(reply, self.rubric.kind, self.rubric.reading), said, None
            except NoReply as error:
                reason = error.reason
            except NoVerdict as error:
                reason, seed = error.reason, seed + 1
        return None, said, reason

    def said(self, votes: Sequence[Vote]) -> str:
        """Every judge's replies, as JSON by its name: its model's, with a number where several endpoints have it."""
        return json.dumps({name: vote.raw for name, vote in zip(self.names, votes, strict=True)})


def present(votes: Sequence[Vote]) -> tuple[list[Vote], str | None]:
    """The votes that were given; where those are not more than half, the reason that is missing most often."""
    given = [vote for vote in votes if vote.error is None]
    missing = Counter(vote.error for vote in votes if vote.error)
    return given, None if 2 * len(given) > len(votes) else missing.most_common(1)[0][0]
