"""Prompts in, candidates out: what `sample` and `answer` share. Resumable by shards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.config.choices import Precision
from stages.config.schema import InferenceRuntime
from stages.models.contract import Contract
from stages.models.loading import device_of, load_model, sampled_as
from stages.models.packing import only_attends
from stages.samplers.generate import GenerateSampler
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import Completion, Request, Sampler
from stages.store.records import Candidate, Example, content_id
from stages.store.shards import in_shards
from stages.store.work import Work


@dataclass
class Decoding:
    """How prompts are completed: one candidate per temperature (0 is greedy)."""

    temperatures: list[float]
    max_new_tokens: int
    precision: Precision
    runtime: InferenceRuntime
    top_p: float = 1.0
    seed: int = 0


def complete(
    prompts: list[Example], terms: Contract, model: Path, decoding: Decoding, title: str, out: Work
) -> list[Candidate]:
    """Candidates for every prompt, one per temperature, in the order of the prompts."""

    def produce(waiting: Sequence[Example]) -> Iterator[tuple[Example, list[Candidate]]]:
        if not waiting:
            return
        loaded = load_model(model, sampled_as(decoding.precision), device_of(decoding.runtime.device))
        rows = decoding.runtime.batch_size
        kind: type[Sampler] = HFSampler if only_attends(loaded) else GenerateSampler
        sampler = kind(loaded, terms.stop_ids, decoding.max_new_tokens, decoding.top_p, rows)
        by_id = {e.id: e for e in waiting}
        requests = [
            Request(e.id, e.messages, terms.prompt(e.messages), decoding.temperatures, decoding.seed) for e in waiting
        ]
        for request, completions in sampler.complete(requests):
            yield by_id[request.id], [candidate(request, i, c, sampler.name) for i, c in enumerate(completions)]

    def candidate(request: Request, index: int, completion: Completion, sampler: str) -> Candidate:
        return Candidate(
            prompt_id=request.id,
            candidate_id=content_id(request.id, index, completion.token_ids),
            policy=model.parent.name,
            sampler=sampler,
            temperature=request.temperatures[index],
            seed=request.seed_of(index),
            text=terms.text(completion.token_ids),
            token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
            logprob=completion.logprob,
            n_tokens=len(completion.token_ids),
        )

    size = decoding.runtime.shard_size
    return in_shards(prompts, lambda e: e.id, produce, Candidate, lambda c: c.prompt_id, size, title, out)
