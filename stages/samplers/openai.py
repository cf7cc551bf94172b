"""Sampling from a model at an OpenAI-compatible server (`pip install -e '.[endpoints]'`). Each call requests one
candidate with its own seed, because many servers return one at a time. DPO tokenizes candidates' texts again."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from stages.config.blocks.sampling import OpenAI
from stages.endpoints.client import Client, Job, Question, run_jobs
from stages.endpoints.reply import NoReply
from stages.samplers.sampler import (
    REASONS,
    Completion,
    Decoding,
    DrawnCompletion,
    Missing,
    Open,
    Request,
    Sampler,
    whole_requests,
)
from stages.store.workspace import StageDir

SEEDS = 2**31  # every server accepts seeds below this number


class OpenAISampler(Sampler):
    """A sampler that calls a model at an endpoint once for each candidate."""

    name = "openai"

    @classmethod
    def opener(cls, cfg: OpenAI, out: StageDir) -> Open:
        return partial(cls.open, client=Client(cfg.endpoint, f"{cfg.key}.endpoint", out), out=out)

    @classmethod
    def open(  # type: ignore[override]  # `opener` binds the rest
        cls, source: Path, stop_ids: list[int], decoding: Decoding, client: Client, out: StageDir
    ) -> "OpenAISampler":
        return cls(decoding, client, out)

    def __init__(self, decoding: Decoding, client: Client, out: StageDir):
        self.decoding = decoding
        self.client = client
        self.out = out
        self.policy = client.endpoint.model

    def complete(
        self, requests: Sequence[Request]
    ) -> Iterator[tuple[Request, list[Completion | Missing]]]:
        """Yield every request with all its completions, in the order of completion."""
        jobs = (
            self.job(request, i) for request in requests for i in range(len(request.temperatures))
        )
        return whole_requests(run_jobs([self.client], jobs, self.out, self.out.allowance))

    def job(self, request: Request, index: int) -> Job[DrawnCompletion]:
        question = Question(
            request.messages,
            self.decoding.max_new_tokens,
            request.temperatures[index],
            request.seed_of(index) % SEEDS,
            self.decoding.top_p,
        )

        async def ask() -> DrawnCompletion:
            try:
                reply = await self.client.ask(question)
            except NoReply as error:
                return request, index, Missing(error.reason, is_reply=not error.retryable)
            if reply.finish_reason not in REASONS:
                reason = f"the reply ended with finish_reason {reply.finish_reason}"[:80]
                return request, index, Missing(reason, is_reply=True)
            return request, index, Completion(None, reply.finish_reason, text=reply.text)

        return ask
