"""Completion of prompts, for the stages `sample` and `answer`. It resumes by shards. A prompt that the model's
template refuses, or that exceeds its context together with an answer, is dropped and counted."""

import inspect
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stages.config.blocks.sampling import Drawn
from stages.config.errors import UserError
from stages.models.contract import Contract, control_message
from stages.models.loading import count_embedding_rows, read_context_length, resolve_device
from stages.models.rendering import ContractError
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import (
    REASONS,
    Completion,
    Decoding,
    Missing,
    Open,
    Request,
    Sampler,
    choose_shard_size,
)
from stages.store import plugins
from stages.store.blocks import cut_blocks
from stages.store.digests import files_of, signature
from stages.store.dropped import Dropped
from stages.store.records import Candidate, Example, Records, content_id
from stages.store.sealed_json import read_note, require_keys, write_note
from stages.store.shards import ShardedWork, StreamedTable
from stages.store.thoughts import answer_behind, never_ends
from stages.store.workspace import SCRATCH, StageDir

ENGINE = "engine.json"  # in the scratch folder: the versions of a sampler's engine


def choose_opener(cfg: Drawn, out: StageDir) -> Open:
    """Return the function that opens the sampler of the group `sample`, or the user's own sampler.
    Raise UserError if the user's own sampler cannot be loaded or is not a Sampler."""
    if not cfg.own:
        return plugins.load_class("samplers", cfg.sampler, Sampler).opener(cfg, out)  # type: ignore[type-abstract]
    sampler_class = plugins.load_subclass(cfg.own, "sample.own", out.path, Sampler)  # type: ignore[type-abstract]
    plugins.require_options(
        cfg.own, "sample.own", inspect.signature(sampler_class.open), out.path, [], None
    )
    return partial(sampler_class.open, **cfg.own.options)


def complete(
    prompts: list[Example],
    contract: Contract,
    model: Path,
    decoding: Decoding,
    title: str,
    out: StageDir,
    dropped: Dropped,
    opener: Open = HFSampler.open,
    max_failed: float | None = None,
) -> StreamedTable[Candidate] | Records[Candidate]:
    """Return the candidates of every prompt, one per temperature, in the order of the prompts. A prompt that is too
    long for the model, or that its template refuses, has no candidates and goes to `dropped`. The sampler stays open
    in `out` for a later stage with the same model and settings.

    Raises:
        UserError: if the sampler omits prompts or completions, or returns an invalid completion.
        UserError: if more candidates than a share of `max_failed` are missing, or too many prompts are too long."""
    missing, requests = Counter[tuple[str, bool]](), dict[str, Request]()

    def prepare(examples: Sequence[Example], context_length: int | None) -> None:
        """Add the requests of prompts that the template accepts and that fit into the context. Drop the others."""
        for example in examples:
            try:
                ids = contract.prompt(example.messages)
            except ContractError as error:
                dropped.add(example.id, error)
                continue
            if context_length is None or len(ids) + decoding.max_new_tokens <= context_length:
                requests[example.id] = Request(
                    example.id, example.messages, ids, decoding.temperatures, decoding.seed
                )
                continue
            limit = f"{decoding.block}.max_new_tokens={decoding.max_new_tokens}"
            reason = (
                f"too long for the {context_length:,} tokens that the model reads, beside {limit}"
            )
            dropped.add(example.id, reason, len(ids))
        asked = (example for example in examples if example.id in requests)
        if spelled := sum(bool(contract.control_in(example.messages)) for example in asked):
            out.warn(control_message(spelled, contract.special))

    def produce(waiting: Sequence[Example]) -> Iterator[tuple[Example, list[Candidate]]]:
        if not waiting:
            return
        sampler = get_sampler(model, contract, decoding, opener, out)
        if not is_ours:  # only the endpoint knows its model's context, and refuses longer requests
            prepare(waiting, read_context_length(model) if sampler.policy is None else None)
            fitting = len(prompts) - len(waiting) + len(requests)
            dropped.settle(fitting, fitting)
        pending = {e.id: e for e in waiting if e.id in requests}
        source = f"the sampler {sampler.name}"
        for request, completions in sampler.complete([requests[id] for id in pending]):
            if len(completions) != len(decoding.temperatures):
                counts = f"{len(completions)} completions instead of {len(decoding.temperatures)}"
                raise UserError(f"{source} returned {counts} for prompt {request.id}.")
            if request.id not in pending:
                raise UserError(
                    f"{source} returned prompt {request.id} twice or without a request."
                )
            missing.update((c.reason, c.is_reply) for c in completions if isinstance(c, Missing))
            completed = [(i, c) for i, c in enumerate(completions) if not isinstance(c, Missing)]
            for _, completion in completed:
                validate_completion(completion, source, request.id, contract.stop_ids, vocabulary)
            policy = sampler.policy or model.parent.name
            candidates = [
                make_candidate(request, i, c, contract, policy, sampler.name) for i, c in completed
            ]
            yield pending.pop(request.id), candidates
        if pending:
            raise UserError(f"{source} returned no completions for {len(pending)} prompts.")

    vocabulary, per_prompt = count_embedding_rows(model), len(decoding.temperatures)
    id_of, prompt_id_of = lambda prompt: prompt.id, lambda candidate: candidate.prompt_id
    is_ours = opener == HFSampler.open
    device = resolve_device(decoding.runtime.device).type if is_ours else "cpu"
    size = choose_shard_size(decoding.runtime, len(prompts), per_prompt, device)
    work = ShardedWork(prompts, id_of, produce, Candidate, prompt_id_of, title, out, per_prompt)
    if is_ours:
        prepare(prompts, read_context_length(model))
        dropped.settle(len(requests), len(requests))
        in_turn = sorted((e for e in prompts if e.id in requests), key=id_of)
        candidates = work.in_blocks(cut_blocks(([e] for e in in_turn), id_of, size))
    else:  # other samplers have their own engine or server, and want all requests at once
        candidates = work.in_shards(size)
    if missing:
        expected = (len(prompts) - dropped.reasons.total()) * per_prompt
        [((reason, is_reply), times)] = missing.most_common(1)
        message = f"{missing.total()} of {expected} candidates are missing; mostly ({times} times): {reason}"
        if missing.total() > (max_failed or 0.0) * expected or missing.total() == expected:
            limit = f"sample.max_failed={max_failed or 0:g} allows fewer, and never all"
            way_out = "Type the same command again to request the missing candidates."
            if is_reply:
                way_out = "The same command gets the same replies. Raise it, or ask another model."
            raise UserError(f"{message}. {limit}. {way_out}")
        out.warn(message)
    return candidates


def make_candidate(
    request: Request,
    index: int,
    completion: Completion,
    contract: Contract,
    policy: str,
    sampler: str,
) -> Candidate:
    """Return a completion as the candidate at this index of its prompt, by the model named `policy`."""
    ids = completion.token_ids
    text = str(completion.text) if ids is None else contract.text(ids)
    # A contract's format may end an answer where the model does not.
    cut = ids is not None and text != Contract.text(contract, ids)
    # The prompt that an endpoint's model read is its own.
    is_open = never_ends(text, None if ids is None else contract.thought_end)
    ended = (cut or completion.finish_reason == "stop") and not is_open
    return Candidate(
        prompt_id=request.id,
        candidate_id=content_id(request.id, index, text if ids is None else ids),
        policy=policy,
        sampler=sampler,
        temperature=request.temperatures[index],
        seed=request.seed_of(index),
        text=text,
        token_ids=ids,
        finish_reason="stop" if ended else "length",
        logprob=completion.logprob,
        n_tokens=contract.length(text) if ids is None else len(ids),
        tokenizer=None if ids is None else contract.digest,
        answer_tokens=0 if is_open else count_answer(text, contract, ids is not None, ended),
    )


def count_answer(text: str, contract: Contract, sampled: bool, ended: bool) -> int | None:
    """Return the tokens of the answer behind a thought, counted as those of a completion without one; None without a
    thought. `sampled`: as token ids, which hold an end of turn if it `ended`, and what the template adds."""
    answer = answer_behind(text)
    if answer == text:
        return None
    header, tail = contract.frame if sampled else ("", "")
    return contract.length(header + answer + tail, sampled and ended)


def get_sampler(
    model: Path, contract: Contract, decoding: Decoding, opener: Open, out: StageDir
) -> Sampler:
    """Return a sampler of the model. It stays open in `out` for the next call with the same arguments."""
    # The key has all arguments of `open`, and signatures of the model's files, which another process may replace.
    # The opener of a user's own sampler is a new `partial` each time, so it is opened anew.
    key = (
        opener,
        contract.stop_ids,
        decoding,
        [(file, signature(file)) for file in files_of(model)],
    )

    def open_new() -> Sampler:
        opened: Any = opener(model, contract.stop_ids, decoding)
        if not isinstance(opened, Sampler):
            raise UserError(
                f"sample.own: `open` returned a {type(opened).__name__}. It must return a Sampler."
            )
        return opened

    sampler: Sampler = out.open_resource.get(key, open_new)
    if sampler.engine:
        validate_engine(sampler.engine, f"{decoding.runtime_key}.python", out)
    return sampler


def validate_engine(engine: dict[str, str], key: str, out: StageDir) -> None:
    """Store the engine's versions beside the shards.
    Raise UserError if another engine drew those that are there: a node has draws of only one."""
    earlier = engine_figures(out).get("engine")
    if earlier and earlier != engine:
        names = [name for name in {**earlier, **engine} if earlier.get(name) != engine.get(name)]
        before, now = (
            ", ".join(f"{name} {each.get(name)}" for name in names) for each in (earlier, engine)
        )
        problem = f"{key}: this node was begun with {before}, and would go on with {now}"
        raise UserError(
            f"{problem}. Type the Python of the first engine, or delete {out.path} to begin anew."
        )
    write_note(out / SCRATCH / ENGINE, engine)


def engine_figures(out: StageDir) -> dict[str, Any]:
    """Return the engine that drew this node's shards, and its device; nothing if a sampler in this process drew."""
    engine = read_note(out / SCRATCH / ENGINE, require_keys("device"))
    return {"device": engine["device"], "engine": engine} if engine else {}


def validate_completion(
    completion: Completion, sampler: str, prompt_id: str, stop_ids: Collection[int], vocabulary: int
) -> None:
    """Raise UserError for an invalid completion. `vocabulary` is the number of tokens in the model's vocabulary."""
    ids, logprob = completion.token_ids, completion.logprob
    if ids is not None and not all(type(i) is int and 0 <= i < vocabulary for i in ids):
        raise UserError(
            f"{sampler} returned token ids outside the model's vocabulary, 0 to {vocabulary - 1}."
        )
    if logprob is not None and not math.isfinite(logprob):
        raise UserError(
            f"{sampler} returned a log-prob of {logprob}. Return None if it is unknown."
        )
    if (ids is None and completion.text is None) or completion.finish_reason not in REASONS:
        problem = f"{sampler} returned a completion of prompt {prompt_id} without tokens and text"
        raise UserError(f"{problem}, or with another finish_reason than {' and '.join(REASONS)}.")
    ends = [i for i, token in enumerate(ids or (), 1) if token in stop_ids]
    if ids is not None and ends != ([len(ids)] if completion.finish_reason == "stop" else []):
        problem = (
            f"{sampler} returned for prompt {prompt_id} finish_reason={completion.finish_reason}"
        )
        counts = f"{len(ends)} of its {len(ids)} tokens end a turn"
        raise UserError(
            f"{problem}, and {counts}. With `stop`, only the last token may end the turn."
        )
