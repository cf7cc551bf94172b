"""`label=judge`: models at endpoints judge candidates by a rubric (`pip install -e '.[endpoints]'`).

A pairwise rubric shows two candidates in both orders. If a judge's choice differs between the orders, its vote is a
tie (position bias: Zheng et al. 2023, arXiv:2306.05685). A pointwise rubric scores each candidate. Several judges
decide by majority, or by the mean of their scores: of those that scored all candidates of the prompt, since one judge
may be harsher than another. Two judges must be unanimous: if they differ, the comparison is a tie, and if one of them
gives no verdict, the judgement is missing. Missing judgements have a reason."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

from stages.config.blocks.labels import Judge
from stages.config.choices import Reading, Rubrics
from stages.config.errors import UserError
from stages.endpoints.client import Client, Question, run_jobs
from stages.endpoints.reply import NoReply
from stages.labelers.labeler import Labeler, Pool, pair_up
from stages.labelers.rubric import SYSTEM, Rubric
from stages.labelers.verdicts import SCALE, SWAPPED, NoVerdict, json_value, one_key_schema, verdict
from stages.store.judged_pool import column
from stages.store.numbers import numbered
from stages.store.records import Candidate, Example, Judgement
from stages.store.workspace import Progress, StageDir

PROBE, WORD = "Say in a sentence what the weather is like at the sea.", "plumb"
# the verdict, the reply, and the error if the reply is not a verdict
VerdictReply = tuple[Any, dict[str, str] | None, str | None]


class Vote(NamedTuple):
    """One judge's verdict: a score in [0, 1] of a candidate, or a, b or tie between two; else the error."""

    value: Any = None
    error: str | None = None
    # True if both orders of the two candidates give the same choice
    orders_agree: bool | None = None
    raw: Any = None  # the judge's replies


class Scores(NamedTuple):
    """The judges' scores of one candidate by the judge's name, and why a judge gave none, if one did not."""

    by_judge: dict[str, float]
    error: str | None


class JudgeLabeler(Labeler):
    """Asks all judges about each candidate, or about two of a prompt's candidates at a time."""

    name = "judge"

    def __init__(self, cfg: Judge, out: StageDir):
        self.cfg, self.out, self.rubric = cfg, out, Rubric(cfg)
        self.disagreements, self.probed = 0, False
        self.compares = cfg.prefers
        self.key = f"{cfg.block}.endpoints"
        self.judges = [Client(e, f"{self.key}[{i}]", out) for i, e in enumerate(cfg.endpoints)]
        self.names = numbered([str(judge.endpoint.model) for judge in self.judges])
        # by candidate, until all candidates of the prompt have theirs
        self.scores = dict[str, Scores]()
        self.failed = Counter[str]()  # of all judgements so far, also those that other judges made

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        return self.judge_all(Pool([prompt], candidates))

    def judge_all(self, pool: Pool) -> Iterator[Judgement]:
        """Yield judgements in the order in which they complete. Raise UserError if a judge ignores the JSON schema; as
        soon as more judgements are missing than `max_failed` allows; if a budget is exhausted."""
        questions = list(self.questions(pool))
        texts_differ = any(
            len({c.stripped_text for c in candidates}) > 1 for _, candidates in pool.by_prompt()
        )
        asks = texts_differ or self.cfg.kind is Rubrics.pointwise
        if self.cfg.reading is Reading.json and asks and not self.probed:
            self.probed = True
            probes = [partial(self.probe, judge) for judge in self.judges]
            list(run_jobs(self.judges, probes, self.out, self.allowance))
        failed, before = Counter[str](), self.disagreements
        with (
            Progress(len(questions), f"label {self.name}", "judgement") as progress,
            closing(run_jobs(self.judges, questions, self.out, self.allowance)) as judgements,
        ):
            for judgement in self.compare_within_judges(judgements, pool):
                failed.update(self.failures_of(judgement))
                if failed.total() > self.cfg.max_failed * len(questions):
                    error, count = failed.most_common(1)[0]
                    missing = f"{failed.total()} of {len(questions)} judgements are already missing"
                    way_out = "Remove the cause, or raise the limit"
                    resumes = "the same command then resumes with the cached replies."
                    cause = f"most often ({count} times) because: {error}"
                    raise UserError(
                        f"{self.cfg.block}.max_failed={self.cfg.max_failed:g}: {missing}, {cause}. {way_out}; {resumes}"
                    )
                yield judgement
                progress.update()
        self.failed += failed
        if self.averages:
            self.warn_of_failed_judges(failed, len(questions))
        if len(self.judges) == 2 and self.cfg.kind is Rubrics.pairwise:
            self.out.inform(
                f"{self.key}: two judges must agree. They differ on {self.disagreements - before} of "
                f"{len(questions)} comparisons, which count as ties. Add a third judge to get a majority."
            )

    def figures(self) -> dict[str, Any]:
        """Return of several pairwise judges the number of comparisons on which they differ, and of several pointwise ones
        the candidates on which a judge failed; nothing for a single judge."""
        if self.averages:
            return {"failed": dict(self.failed)}
        several = len(self.judges) > 1 and self.cfg.kind is Rubrics.pairwise
        return {"judges_differ": self.disagreements} if several else {}

    @property
    def averages(self) -> bool:
        """True if a score is the mean of several judges' scores."""
        return len(self.judges) > 1 and self.cfg.kind is Rubrics.pointwise

    def questions(self, pool: Pool) -> Iterator[partial[Coroutine[Any, Any, Judgement]]]:
        """Yield one callable per judgement, whose coroutine asks the judges."""
        for prompt, candidates in pool.by_prompt():
            if self.cfg.kind is Rubrics.pointwise:
                yield from (
                    partial(self.judge_score, prompt, candidate) for candidate in candidates
                )
            else:
                pairs = pair_up(candidates, self.cfg.comparisons, self.cfg.seed)
                yield from (partial(self.judge_preference, prompt, a, b) for a, b in pairs)

    async def probe(self, judge: Client) -> None:
        """Check that a server enforces a JSON schema, by a question that a free model would answer otherwise. A cached
        reply that breaks the schema is asked for again, because it may come from an earlier server.
        Raise UserError if the server does not enforce the schema, or does not reply."""
        schema = one_key_schema("word", {"type": "string", "enum": [WORD]})
        messages = [
            {"role": "system", "content": SYSTEM.format(mark="0")},
            {"role": "user", "content": PROBE},
        ]
        question = Question(messages, max(64, self.cfg.max_tokens), 0.0, 0, response_format=schema)
        server = f"{judge.name}: {judge.endpoint.model} at {judge.endpoint.base_url}"
        text_setting = f"{self.cfg.block}.reading=text"
        reply_text = ""
        for fresh in (False, True):
            try:
                reply_text = (await judge.ask(question, fresh)).text
                json_value(reply_text, "word", (WORD,))
                return
            except NoReply as error:
                problem = "does not answer the first question"
                way_out = "Remove the cause, and type the same command again."
                if error.refuses_request:
                    problem += ", which has a json_schema"
                    way_out = f"If it accepts no schema, set {text_setting}."
                raise UserError(f"{server} {problem}: {error.reason}. {way_out}") from error
            except NoVerdict:
                continue
        way_out = f"Set {text_setting}, which reads the verdict from the last line of the reply."
        raise UserError(
            f"{server} does not follow a json_schema (it replied {reply_text[:60]!r}). {way_out}"
        )

    async def judge_score(self, prompt: Example, candidate: Candidate) -> Judgement:
        """Return the mean of the judges' scores as a judgement."""
        votes = await asyncio.gather(
            *(self.score(judge, prompt, candidate) for judge in self.judges)
        )
        cast, error = cast_votes(votes)
        by_judge = {
            name: vote.value
            for name, vote in zip(self.names, votes, strict=True)
            if vote.error is None
        }
        first_error = next((vote.error for vote in votes if vote.error), None)
        self.scores[candidate.candidate_id] = Scores(by_judge, first_error)
        score, raw = None if error else fmean(vote.value for vote in cast), self.raw_replies(votes)
        return Judgement(
            prompt.id, self.name, candidate.candidate_id, score=score, raw=raw, error=error
        )

    def compare_within_judges(
        self, judgements: Iterable[Judgement], pool: Pool
    ) -> Iterator[Judgement]:
        """Yield the judgements, those with mean scores once all of their prompt are made."""
        if not self.averages:
            yield from judgements
            return
        counts = Counter(column(pool.candidates, "prompt_id"))
        waiting = defaultdict[str, list[Judgement]](list)
        for judgement in judgements:
            of_prompt = waiting[judgement.prompt_id]
            of_prompt.append(judgement)
            if len(of_prompt) == counts[judgement.prompt_id]:
                self.average(of_prompt)
                yield from waiting.pop(judgement.prompt_id)

    def average(self, of_prompt: Sequence[Judgement]) -> None:
        """Set the scores of a prompt's judgements to means over the same judges: those that scored all candidates, if
        they are more than half. Else a candidate without the score of every judge gets the judge's error."""
        scored = [j for j in of_prompt if j.error is None]
        common = [
            name
            for name in self.names
            if all(name in self.scores[str(j.candidate_id)].by_judge for j in scored)
        ]
        for j in scored:
            scores = self.scores[str(j.candidate_id)]
            if 2 * len(common) > len(self.judges):
                j.score = fmean(scores.by_judge[name] for name in common)
            elif scores.error:
                j.score = None
                j.error = scores.error

    def failures_of(self, judgement: Judgement) -> list[str]:
        """Return why a judgement is missing, or why a judge gave no score of the candidate; [] if neither."""
        scores = self.scores.pop(str(judgement.candidate_id), None)
        error = judgement.error or (scores and scores.error)
        return [error] if error else []

    def warn_of_failed_judges(self, failed: Counter[str], count: int) -> None:
        """Warn of candidates that a judge did not score."""
        for error, times in failed.most_common(1):
            problem = f"a judge gave no score of {failed.total()} of {count} candidates"
            effect = "Of their prompts, the other judges' scores count"
            self.out.warn(
                f"{self.key}: {problem}, most often ({times} times) because: {error}. {effect}."
            )

    async def judge_preference(self, prompt: Example, a: Candidate, b: Candidate) -> Judgement:
        """Return the preference of more than half of the judges, else a tie. For equal texts no judge is asked."""
        judgement = partial(Judgement, prompt.id, self.name, a=a.candidate_id, b=b.candidate_id)
        if a.stripped_text == b.stripped_text:
            return judgement(preference="tie")
        votes = await asyncio.gather(
            *(self.preference(judge, prompt, a, b) for judge in self.judges)
        )
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
        return Vote(
            None if error else (verdict_score - SCALE[0]) / (SCALE[-1] - SCALE[0]),
            error,
            None,
            reply,
        )

    async def preference(self, judge: Client, prompt: Example, a: Candidate, b: Candidate) -> Vote:
        (first, ab, error), (second, ba, swapped_error) = await asyncio.gather(
            self.ask_verdict(judge, prompt, [a.text, b.text]),
            self.ask_verdict(judge, prompt, [b.text, a.text]),
        )
        raw = {"ab": ab, "ba": ba}
        if failure := error or swapped_error:
            return Vote(None, failure, None, raw)
        agrees = first == SWAPPED[second]
        return Vote(first.lower() if agrees else "tie", None, agrees, raw)

    async def ask_verdict(
        self, judge: Client, prompt: Example, texts: Sequence[str]
    ) -> VerdictReply:
        """Return a judge's verdict, its reply, and the error if there is no verdict. After a reply that is not a
        verdict, the next attempt has another seed. Without a reply the seed stays: network faults decide nothing."""
        stored_reply = reason = None
        seed = 0
        for _ in range(self.cfg.attempts):
            try:
                reply = await judge.ask(self.rubric.question(prompt.messages, texts, seed))
                stored_reply = {"text": reply.text, "finish_reason": reply.finish_reason}
                return verdict(reply, self.cfg.kind, self.cfg.reading), stored_reply, None
            except NoReply as error:
                reason = error.reason
                if not error.retryable:
                    break
            except NoVerdict as error:
                reason, seed = str(error), seed + 1
        return None, stored_reply, reason

    def raw_replies(self, votes: Sequence[Vote]) -> str:
        """Return all judges' replies as JSON, by the judge's model name (numbered if several endpoints share it)."""
        return json.dumps({name: vote.raw for name, vote in zip(self.names, votes, strict=True)})


def cast_votes(votes: Sequence[Vote]) -> tuple[list[Vote], str | None]:
    """Return the votes that have a value and, if they are not more than half, the most frequent error of the rest."""
    cast = [vote for vote in votes if vote.error is None]
    reasons = Counter(vote.error for vote in votes if vote.error)
    return cast, None if 2 * len(cast) > len(votes) else reasons.most_common(1)[0][0]
