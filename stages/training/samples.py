"""Samples of a model while it is trained: at every evaluation it answers the same few held-out prompts, greedily."""

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.config.blocks.training import DPO, SFT
from stages.config.choices import Sharding
from stages.models.contract import Contract
from stages.models.inference_copy import twin
from stages.models.loading import context
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import Completion, Request
from stages.store.records import Message, prompt_id
from stages.store.training_samples import Sample, append_samples
from stages.store.workspace import Work

log = logging.getLogger(__name__)


class Samples(TrainerCallback):
    """Keeps the answers in the node's `samples.jsonl`. Those before the first step are the start's: in DPO the
    reference's, wherever the policy begins as the reference.

    A twin answers, which knows no dropout and draws no random number: training goes on to the bit as if nobody had
    asked. Of several processes the first asks, and the others wait for it at the next step. Weights that are sharded
    lie whole in no process; then nothing is sampled.
    """

    def __init__(
        self, trainer: Trainer, cfg: SFT | DPO, held_out: Iterable[list[Message]], terms: Contract, out: Work
    ):
        self.trainer, self.cfg, self.terms, self.out = trainer, cfg, terms, out
        whole = cfg.runtime.sharding is Sharding.none
        asked = [*FirstPrompts(cfg.runtime.samples, held_out)] if whole and out.main else []
        requests = [Request(prompt_id(m), m, terms.prompt(m), [0.0], 0) for m in asked]
        most = context(trainer.model.config) or math.inf
        self.requests = [r for r in requests if len(r.token_ids) + cfg.runtime.sample_tokens <= most]
        if long := len(requests) - len(self.requests):
            out.warn(
                f"{long} of {len(requests)} held-out prompts are not sampled while this trains: with "
                f"{cfg.block}.runtime.sample_tokens={cfg.runtime.sample_tokens} they are longer than the {most:,} "
                "tokens that the model reads."
            )
        if not whole and out.main and cfg.runtime.samples:
            log.info("no samples while this trains: its weights are sharded.")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.requests:
            append_samples(self.out.path, self.answers(state.global_step))

    def answers(self, step: int) -> list[Sample]:
        """What the model as it is now says to every prompt, in the order of their ids."""
        model, limit = twin(self.trainer.model, self.cfg.precision), self.cfg.runtime.sample_tokens
        sampler = HFSampler.of(model, self.terms.stop_ids, limit, 1.0, len(self.requests))
        found = {r.id: c for r, [c] in sampler.complete(self.requests) if isinstance(c, Completion)}
        return [
            Sample(step, r.id, r.messages, self.terms.text(found[r.id].token_ids or []), found[r.id].finish_reason)
            for r in self.requests
        ]


class FirstPrompts:
    """The first prompts in the order of their hashes: of the same rows always the same ones, whatever their order."""

    def __init__(self, count: int, prompts: Iterable[list[Message]] = ()):
        self.count, self.by_id = count, dict[str, list[Message]]()
        for prompt in prompts:
            self.add(prompt)

    def add(self, prompt: list[Message]) -> None:
        self.by_id[prompt_id(prompt)] = prompt
        if len(self.by_id) > self.count:
            del self.by_id[max(self.by_id)]

    def __iter__(self) -> Iterator[list[Message]]:
        return (self.by_id[name] for name in sorted(self.by_id))
