"""Samples of a model while it is trained: at every evaluation it answers the same few held-out prompts, greedily."""

import logging
from collections.abc import Iterable
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.config.blocks.training import DPO, SFT
from stages.config.choices import Sharding
from stages.models.contract import Contract
from stages.models.twin import twin
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import Completion, Request
from stages.store.records import Message, prompt_id
from stages.store.samples import Sample, append_samples
from stages.store.work import Work

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
        self.requests = first_by_content(held_out, cfg.runtime.samples, terms) if whole and out.main else []
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


def first_by_content(prompts: Iterable[list[Message]], count: int, terms: Contract) -> list[Request]:
    """The first prompts in the order of their hashes: of the same rows always the same ones, whatever their order."""
    by_id = {prompt_id(messages): messages for messages in prompts}
    return [Request(name, by_id[name], terms.prompt(by_id[name]), [0.0], 0) for name in sorted(by_id)[:count]]
