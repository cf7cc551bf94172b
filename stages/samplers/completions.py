"""Prompts in, candidates out: what `sample` and `answer` share. Resumable by shards. A prompt that does not fit into
the model's context beside its answer is asked of nobody, and counted."""

import inspect
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from stages.config.blocks.sampling import Sample
from stages.config.errors import UserError
from stages.models.contract import Contract
from stages.models.loading import context_of, embedding_rows
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import REASONS, Completion, Decoding, Missing, Open, Request, Sampler
from stages.store import plugins
from stages.store.digests import files_of, signature
from stages.store.dropped import Dropped
from stages.store.records import Candidate, Example, content_id
from stages.store.shards import StreamedTable, in_shards
from stages.store.workspace import StageDir


def chosen(cfg: Sample, out: StageDir) -> Open:
    """How the sampler that `sample` names is opened: a file of this folder, or the user's own.

    Raises:
        UserError: where the user's own cannot be loaded or is no sampler.
    """
    if not cfg.own:
        return plugins.named("samplers", cfg.sampler, Sampler).opener(cfg, out)  # type: ignore[type-abstract]
    found = plugins.of_kind(cfg.own, "sample.own", out.path, Sampler)  # type: ignore[type-abstract]
    plugins.fitting(cfg.own, "sample.own", inspect.signature(found.open), out.path, [], None)
    return partial(found.open, **cfg.own.options)


def complete(
    prompts: list[Example],
    terms: Contract,
    model: Path,
    decoding: Decoding,
    title: str,
    out: StageDir,
    dropped: Dropped,
    opened: Open = HFSampler.open,
    max_failed: float | None = None,
) -> StreamedTable[Candidate]:
    """Return candidates for every prompt, one per temperature, in the order of the prompts; none for a prompt that is
    too long for the model, which goes to `dropped`. The sampler is left open in `out` for a stage after this one that
    asks the same model in the same way.

    Raises:
        UserError: where a sampler leaves prompts or candidates out, says no reason for an end, or another than its
            tokens do; where more candidates than a share of `max_failed` are missing, or too many prompts too long.
    """
    missing = Counter[str]()

    def produce(waiting: Sequence[Example]) -> Iterator[tuple[Example, list[Candidate]]]:
        if not waiting:
            return
        sampler = sampler_of(model, terms, decoding, opened, out)
        left, requests = {e.id: e for e in waiting}, list[Request]()
        # The context of a model at an endpoint is known there alone: the endpoint refuses what is longer.
        most = context_of(model) if sampler.policy is None else None
        for e in waiting:
            request = Request(e.id, e.messages, terms.prompt(e.messages), decoding.temperatures, decoding.seed)
            tokens = len(request.token_ids)
            if most is None or tokens + decoding.max_new_tokens <= most:
                requests.append(request)
                continue
            answer = f"{decoding.block}.max_new_tokens={decoding.max_new_tokens}"
            dropped.add(e.id, f"too long for the {most:,} tokens that the model reads, beside {answer}", tokens)
            yield left.pop(e.id), []
        fitting = len(prompts) - len(waiting) + len(requests)
        dropped.settle(fitting, fitting)
        for request, completions in sampler.complete(requests):
            if len(completions) != len(decoding.temperatures):
                told = f"{len(completions)} completions of {len(decoding.temperatures)}"
                raise UserError(f"the sampler {sampler.name} gives {told} for prompt {request.id}.")
            if request.id not in left:
                raise UserError(f"the sampler {sampler.name} gives {request.id}, which was not asked, or twice.")
            missing.update(c.reason for c in completions if isinstance(c, Missing))
            made = [candidate(request, i, c, sampler) for i, c in enumerate(completions) if not isinstance(c, Missing)]
            yield left.pop(request.id), made
        if left:
            raise UserError(f"the sampler {sampler.name} gives nothing for {len(left)} of {len(requests)} prompts.")

    def candidate(request: Request, index: int, completion: Completion, sampler: Sampler) -> Candidate:
        refuse(completion, f"the sampler {sampler.name}", request.id, terms.stop_ids, vocabulary)
        ids = completion.token_ids
        text = str(completion.text) if ids is None else terms.text(ids)
        return Candidate(
            prompt_id=request.id,
            candidate_id=content_id(request.id, index, text if ids is None else ids),
            policy=sampler.policy or model.parent.name,
            sampler=sampler.name,
            temperature=request.temperatures[index],
            seed=request.seed_of(index),
            text=text,
            token_ids=ids,
            finish_reason=completion.finish_reason,
            logprob=completion.logprob,
            n_tokens=terms.length(text) if ids is None else len(ids),
            tokenizer=None if ids is None else terms.digest,
        )

    vocabulary, size, each = embedding_rows(model), decoding.runtime.shard_size, len(decoding.temperatures)
    of = lambda c: c.prompt_id
    made = in_shards(prompts, lambda e: e.id, produce, Candidate, of, size, title, out, rows=each, whole=each)
    if missing:
        (most, times), wanted = missing.most_common(1)[0], (len(prompts) - dropped.reasons.total()) * each
        told = f"{missing.total()} of {wanted} candidates are missing; most often ({times} times): {most}"
        if missing.total() > (max_failed or 0.0) * wanted:
            allowed = f"sample.max_failed={max_failed or 0:g}"
            raise UserError(f"{told}. {allowed} allows fewer; the same command asks again.")
        out.warn(told)
    return made


def sampler_of(model: Path, terms: Contract, decoding: Decoding, opened: Open, out: StageDir) -> Sampler:
    """Return a sampler of the model, left open in `out` for whoever asks for the same one next."""
    # All that `open` is told, and what the model's files are: another process may have replaced them. One's own
    # sampler, a new `partial` each time, equals no other.
    key = (opened, terms.stop_ids, decoding, [(file, signature(file)) for file in files_of(model)])
    sampler = out.kept.get(key, lambda: opened(model, terms.stop_ids, decoding))
    if not isinstance(sampler, Sampler):
        raise UserError(f"open gives a {type(sampler).__name__}, which is no Sampler.")
    return sampler


def refuse(completion: Completion, sampler: str, prompt_id: str, stop_ids: Collection[int], vocabulary: int) -> None:
    """Raise UserError for a completion that cannot be: `vocabulary` is how many tokens the model knows."""
    ids, logprob = completion.token_ids, completion.logprob
    if ids is not None and not all(type(i) is int and 0 <= i < vocabulary for i in ids):
        raise UserError(f"{sampler} gives token ids outside the model's, 0 to {vocabulary - 1}.")
    if logprob is not None and not math.isfinite(logprob):
        raise UserError(f"{sampler} gives a log-prob of {logprob}: None, where it is not known.")
    if (ids is None and completion.text is None) or completion.finish_reason not in REASONS:
        raise UserError(
            f"{sampler} gives a completion of prompt {prompt_id} without tokens or text, or whose finish_reason is "
            f"none of {', '.join(REASONS)}."
        )
    ends = [i for i, token in enumerate(ids or (), 1) if token in stop_ids]
    if ids is not None and ends != ([len(ids)] if completion.finish_reason == "stop" else []):
        raise UserError(
            f"{sampler} gives a completion of prompt {prompt_id} with finish_reason={completion.finish_reason}, and "
            f"{len(ends)} of its {len(ids)} tokens end a turn. The last token of one that stopped does, and no other."
        )
