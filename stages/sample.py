"""Stage `sample`: the policy answers preference prompts several times. The pool carries its prompts with it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from stages import contract
from stages.config import InferenceRuntime, Precision, Sample
from stages.contract import Contract
from stages.errors import UserError
from stages.models import device_of, load_model
from stages.records import Candidate, Example, content_id, load, save
from stages.samplers import Completion, Request
from stages.samplers.hf import HFSampler
from stages.shards import in_shards
from stages.store import Work


def run(cfg: Sample, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `prompts.parquet` and `candidates.parquet`; (prompt_id, candidate_id) is unique.

    Raises:
        UserError: where no prompt is left to sample.
    """
    examples = [e for e in load(inputs["data"] / "examples.parquet", Example) if e.split == "preference"]
    mine = [e for e in examples if int(e.id, 16) % cfg.rounds == cfg.round]
    prompts = sorted(mine, key=lambda e: content_id(e.id))[: cfg.prompts]
    if not prompts:
        raise UserError(
            "the data holds no preference prompts to sample. Raise data.tasks.preference, or add a source."
        )
    model = inputs["policy"] / "model"
    candidates = complete(
        prompts,
        contract.load(model),
        model,
        temperatures=[cfg.temperatures[i % len(cfg.temperatures)] for i in range(cfg.candidates_per_prompt)],
        top_p=cfg.top_p,
        max_new_tokens=cfg.max_new_tokens,
        precision=cfg.precision,
        seed=cfg.seed,
        runtime=cfg.runtime,
        title="sample",
        out=out,
    )
    save(out / "prompts.parquet", prompts, Example)
    save(out / "candidates.parquet", candidates, Candidate)
    tokens = sum(c.n_tokens for c in candidates)
    stopped = sum(c.finish_reason == "stop" for c in candidates) / len(candidates)
    return {
        "device": str(device_of(cfg.runtime.device)),
        "prompts": len(prompts),
        "candidates": len(candidates),
        "tokens": tokens,
        "stop_rate": stopped,
        "mean_tokens": tokens / len(candidates),
        "summary": f"{len(candidates)} candidates for {len(prompts)} prompts, {tokens} tokens, {stopped:.1%} stopped",
    }


def complete(
    prompts: list[Example],
    terms: Contract,
    model: Path,
    *,
    temperatures: list[float],
    top_p: float,
    max_new_tokens: int,
    precision: Precision,
    seed: int,
    runtime: InferenceRuntime,
    title: str,
    out: Work,
) -> list[Candidate]:
    """Candidates for every prompt, one per temperature, in the order of the prompts; resumable by shards."""

    def produce(waiting: Sequence[Example]) -> Iterator[tuple[Example, list[Candidate]]]:
        if not waiting:
            return
        dtype = torch.bfloat16 if precision is Precision.bf16 else torch.float32
        loaded = load_model(model, dtype).to(device_of(runtime.device))
        sampler = HFSampler(loaded, terms.stop_ids, max_new_tokens, top_p, runtime.batch_size)
        by_id = {e.id: e for e in waiting}
        requests = [Request(e.id, e.messages, terms.prompt(e.messages), temperatures, seed) for e in waiting]
        for request, completions in sampler.complete(requests):
            yield by_id[request.id], [record(request, i, c) for i, c in enumerate(completions)]

    def record(request: Request, index: int, completion: Completion) -> Candidate:
        return Candidate(
            prompt_id=request.id,
            candidate_id=content_id(request.id, index, completion.token_ids),
            policy=model.parent.name,
            sampler="hf",
            temperature=request.temperatures[index],
            seed=request.seed_of(index),
            text=terms.text(completion.token_ids),
            token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
            logprob=completion.logprob,
            n_tokens=len(completion.token_ids),
        )

    return in_shards(
        prompts, lambda e: e.id, produce, Candidate, lambda c: c.prompt_id, runtime.shard_size, title, out
    )
