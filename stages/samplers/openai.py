"""Candidates of another model, at any OpenAI-compatible server (`pip install -e '.[endpoints]'`).

A call asks for one candidate: many servers answer a request for several with one. Its seed goes along, and tells it
from the others of its prompt. What comes is text, which DPO tokenises anew.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from stages.config.blocks.sampling import Sample
from stages.endpoints.client import Client, Question
from stages.endpoints.reply import NoReply
from stages.endpoints.together import Job, answers
from stages.samplers.sampler import REASONS, Completion, Decoding, Missing, Open, Request, Sampler
from stages.store.workspace import StageDir

SEEDS = 2**31  # what every server takes as a seed is below

Done = tuple[Request, int, Completion | Missing]


class OpenAISampler(Sampler):
    """Completes prompts by asking a model at an endpoint, each candidate by a call of its own."""

    name = "openai"

    @classmethod
    def opener(cls, cfg: Sample, out: StageDir) -> Open:
        return partial(cls.open, client=Client(cfg.endpoint, f"{cfg.key}.endpoint", out), out=out)

    @classmethod
    def open(  # type: ignore[override]  # `opener` binds the rest
        cls, source: Path, stop_ids: list[int], decoding: Decoding, client: Client, out: StageDir
    ) -> "OpenAISampler":
        return cls(decoding, client, out)

    def __init__(self, decoding: Decoding, client: Client, out: StageDir):
        self.decoding, self.client, self.out = decoding, client, out
        self.policy = client.endpoint.model

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[Request, list[Completion | Missing]]]:
        """Every request with all its completions, in the order in which they are finished."""
        found = defaultdict[str, dict[int, Completion | Missing]](dict)
        jobs = (self.job(request, i) for request in requests for i in range(len(request.temperatures)))
        for request, i, completion in answers([self.client], jobs, self.out):
            found[request.id][i] = completion
            if len(found[request.id]) == len(request.temperatures):
                yield request, [completion for _, completion in sorted(found.pop(request.id).items())]

    def job(self, request: Request, i: int) -> Job[Done]:
        most, seed = self.decoding.max_new_tokens, request.seed_of(i) % SEEDS
        question = Question(request.messages, most, request.temperatures[i], seed, self.decoding.top_p)

        async def asked() -> Done:
            try:
                reply = await self.client.ask(question)
            except NoReply as error:
                return request, i, Missing(error.reason)
            if reply.finish_reason not in REASONS:
                return request, i, Missing(f"it ended by {reply.finish_reason}"[:80])
            return request, i, Completion(None, reply.finish_reason, text=reply.text)

        return asked
