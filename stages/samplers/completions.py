"""Completion of prompts, for the stages `sample` and `answer`. It resumes by shards. A prompt that the model's
template refuses, or that exceeds its context together with an answer, is dropped and counted."""

import inspect
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from stages.config.blocks.sampling import DrawnCandidates
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


def choose_opener(cfg: DrawnCandidates, out: StageDir) -> Open:
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
    source = CandidateSource(len(prompts), contract, model, decoding, opener, out, dropped)
    per_prompt = len(decoding.temperatures)
    id_of = attrgetter("id")
    work = ShardedWork(
        prompts, id_of, source.produce, Candidate, attrgetter("prompt_id"), title, out, per_prompt
    )
    if source.is_ours:
        device = resolve_device(decoding.runtime.device).type
        size = choose_shard_size(decoding.runtime, len(prompts), per_prompt, device)
        source.prepare(prompts, read_context_length(model))
        asked = sorted((e for e in prompts if e.id in source.requests), key=id_of)
        candidates = work.in_blocks(cut_blocks(([e] for e in asked), id_of, size))
    else:  # other samplers have their own engine or server, and want all requests at once
        size = choose_shard_size(decoding.runtime, len(prompts), per_prompt, "cpu")
        candidates = work.in_shards(size)
    if source.missing:
        expected = (len(prompts) - dropped.reasons.total()) * per_prompt
        report_missing(source.missing, expected, max_failed or 0.0, out)
    return candidates


@dataclass
class CandidateSource:
    """Makes the candidates of so many `prompts` by one sampler. `requests`: by prompt, of those that can be completed.
    `missing`: how often completions are missing for a reason, and whether that is a reply of the server."""

    prompts: int
    contract: Contract
    model: Path
    decoding: Decoding
    opener: Open
    out: StageDir
    dropped: Dropped
    requests: dict[str, Request] = field(default_factory=dict)
    missing: Counter[tuple[str, bool]] = field(default_factory=Counter)

    @property
    def is_ours(self) -> bool:
        return self.opener == HFSampler.open

    @cached_property
    def vocabulary(self) -> int:
        return count_embedding_rows(self.model)

    def prepare(self, examples: Sequence[Example], context_length: int | None) -> None:
        """Add the requests of prompts that the template accepts and that fit into the context. Drop the others."""
        decoding = self.decoding
        spelled = 0
        for example in examples:
            try:
                ids = self.contract.prompt(example.messages)
            except ContractError as error:
                self.dropped.add(example.id, error)
                continue
            if context_length is not None and len(ids) + decoding.max_new_tokens > context_length:
                limit = f"{decoding.block}.max_new_tokens={decoding.max_new_tokens}"
                problem = f"too long for the {context_length:,} tokens that the model reads"
                self.dropped.add(example.id, f"{problem}, beside {limit}", len(ids))
                continue
            self.requests[example.id] = Request(
                example.id, example.messages, ids, decoding.temperatures, decoding.seed
            )
            spelled += bool(self.contract.control_in(example.messages))
        if spelled:
            self.out.warn(control_message(spelled, self.contract.special))
        fitting = self.prompts - len(examples) + len(self.requests)
        self.dropped.settle(fitting, fitting)

    def produce(self, waiting: Sequence[Example]) -> Iterator[tuple[Example, list[Candidate]]]:
        """Yield the candidates of each prompt, in the order of completion."""
        if not waiting:
            return
        sampler = get_sampler(self.model, self.contract, self.decoding, self.opener, self.out)
        if not self.is_ours:
            # only the endpoint knows its model's context, and refuses longer requests
            has_model = sampler.policy is None
            self.prepare(waiting, read_context_length(self.model) if has_model else None)
        pending = {e.id: e for e in waiting if e.id in self.requests}
        source = f"the sampler {sampler.name} returned"
        for request, completions in sampler.complete([self.requests[id] for id in pending]):
            if request.id not in pending:
                raise UserError(f"{source} prompt {request.id} twice or without a request.")
            if len(completions) != len(request.temperatures):
                counts = f"{len(completions)} completions instead of {len(request.temperatures)}"
                raise UserError(f"{source} {counts} for prompt {request.id}.")
            yield pending.pop(request.id), self.candidates(sampler, request, completions)
        if pending:
            raise UserError(f"{source} no completions for {len(pending)} prompts.")

    def candidates(
        self, sampler: Sampler, request: Request, completions: Sequence[Completion | Missing]
    ) -> list[Candidate]:
        """Return the candidates of a prompt, and count the missing ones."""
        policy = sampler.policy or self.model.parent.name
        candidates = list[Candidate]()
        for i, completion in enumerate(completions):
            if isinstance(completion, Missing):
                self.missing[completion.reason, completion.is_reply] += 1
                continue
            stops = self.contract.stop_ids
            name = f"the sampler {sampler.name}"
            validate_completion(completion, name, request.id, stops, self.vocabulary)
            candidates.append(
                make_candidate(request, i, completion, self.contract, policy, sampler.name)
            )
        return candidates


def report_missing(
    missing: Counter[tuple[str, bool]], expected: int, max_failed: float, out: StageDir
) -> None:
    """Warn of missing candidates. Raise UserError if they are more than a share of `max_failed` of those expected, or
    all."""
    count = missing.total()
    [((reason, is_reply), times)] = missing.most_common(1)
    message = f"{count} of {expected} candidates are missing; mostly ({times} times): {reason}"
    if count <= max_failed * expected and count < expected:
        out.warn(message)
        return
    way_out = "Type the same command again to request them."
    if is_reply:
        way_out = "The same command gets the same replies. Raise it, or ask another model."
    raise UserError(
        f"{message}. sample.max_failed={max_failed:g} allows fewer, and never all. {way_out}"
    )


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
    ended = completion.finish_reason == "stop"
    if ids is None:
        text = str(completion.text)
        content: Any = text
        n_tokens = contract.length(text)
        tokenizer = None
        is_open = never_ends(text, None)  # the prompt that an endpoint's model read is its own
    else:
        text = contract.text(ids)
        content = ids
        n_tokens = len(ids)
        tokenizer = contract.digest
        is_open = never_ends(text, contract.thought_end)
        # A contract's format may end an answer where the model does not.
        ended |= text != Contract.text(contract, ids)
    if is_open:
        ended = False
        answer_tokens: int | None = 0
    else:
        answer_tokens = count_answer(text, contract, ids is not None, ended)
    return Candidate(
        prompt_id=request.id,
        candidate_id=content_id(request.id, index, content),
        policy=policy,
        sampler=sampler,
        temperature=request.temperatures[index],
        seed=request.seed_of(index),
        text=text,
        token_ids=ids,
        finish_reason="stop" if ended else "length",
        logprob=completion.logprob,
        n_tokens=n_tokens,
        tokenizer=tokenizer,
        answer_tokens=answer_tokens,
    )


def count_answer(text: str, contract: Contract, sampled: bool, ended: bool) -> int | None:
    """Return the tokens of the answer behind a thought, counted as those of a completion without one; None without a
    thought. `sampled`: as token ids, which hold an end of turn if it `ended`, and what the template adds."""
    answer = answer_behind(text)
    if answer == text:
        return None
    if not sampled:
        return contract.length(answer)
    header, tail = contract.frame
    return contract.length(header + answer + tail, ended)


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
        before = ", ".join(f"{name} {earlier.get(name)}" for name in names)
        now = ", ".join(f"{name} {engine.get(name)}" for name in names)
        raise UserError(
            f"{key}: this node was begun with {before}, and would go on with {now}. "
            f"Type the Python of the first engine, or delete {out.path} to begin anew."
        )
    write_note(out / SCRATCH / ENGINE, engine)


def engine_figures(out: StageDir) -> dict[str, Any]:
    """Return the engine that drew this node's shards, and its device; nothing if a sampler in this process drew."""
    engine = read_note(out / SCRATCH / ENGINE, require_keys("device"))
    if not engine:
        return {}
    return {"device": engine["device"], "engine": engine}


def validate_completion(
    completion: Completion, sampler: str, prompt_id: str, stop_ids: Collection[int], vocabulary: int
) -> None:
    """Raise UserError for an invalid completion. `vocabulary` is the number of tokens in the model's vocabulary."""
    fault = completion_fault(completion, stop_ids, vocabulary)
    if fault:
        raise UserError(f"{sampler} returned for prompt {prompt_id} {fault}.")


def completion_fault(completion: Completion, stop_ids: Collection[int], vocabulary: int) -> str:
    """Return what is wrong with a completion; '' if nothing is."""
    ids = completion.token_ids
    reason = completion.finish_reason
    if reason not in REASONS:
        return f"another finish_reason than {' and '.join(REASONS)}"
    if completion.logprob is not None and not math.isfinite(completion.logprob):
        return f"a log-prob of {completion.logprob}. Return None if it is unknown"
    if ids is None and completion.text is None:
        return "a completion without tokens and text"
    if ids is None:
        return ""
    if not all(type(i) is int and 0 <= i < vocabulary for i in ids):
        return f"token ids outside the model's vocabulary, 0 to {vocabulary - 1}"
    ends = [place for place, token in enumerate(ids, 1) if token in stop_ids]
    if ends != [len(ids)] * (reason == "stop"):
        return f"finish_reason={reason}, and {len(ends)} of {len(ids)} tokens end a turn: `stop` needs one, the last"
    return ""
