"""Samples of a model while it is trained: at every evaluation it answers the same few held-out prompts, greedily."""

import copy
import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.config.blocks.runtimes import SampledRuntime
from stages.config.blocks.training import Training
from stages.config.choices import Precision, Sharding, Weights
from stages.models.contract import Contract
from stages.models.loading import context_length, sampling_weights
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import Completion, Request
from stages.store.records import Message, prompt_id
from stages.store.training_samples import Sample, append_samples
from stages.store.workspace import StageDir

log = logging.getLogger(__name__)


class SampleWriter(TrainerCallback):
    """Keeps the answers in the node's `samples.jsonl`. Those before the first step are the start's: in DPO the
    reference's, wherever the policy begins as the reference.

    An inference copy answers, which knows no dropout and draws no random number: training goes on to the bit as if
    nobody had asked. Of several processes the first asks, and the others wait for it at the next step. Weights that
    are sharded lie whole in no process; then nothing is sampled.
    """

    def __init__(
        self, trainer: Trainer, cfg: Training, held_out: Iterable[list[Message]], contract: Contract, out: StageDir
    ):
        assert isinstance(cfg.runtime, SampledRuntime)
        self.trainer, self.precision, self.contract, self.out = trainer, cfg.precision, contract, out
        self.sample_tokens = cfg.runtime.sample_tokens
        is_unsharded = cfg.runtime.sharding is Sharding.none
        prompts = [*FirstPrompts(cfg.runtime.samples, held_out)] if is_unsharded and out.main else []
        requests = [Request(prompt_id(m), m, contract.prompt(m), [0.0], 0) for m in prompts]
        context = context_length(trainer.model.config) or math.inf
        self.requests = [r for r in requests if len(r.token_ids) + cfg.runtime.sample_tokens <= context]
        if long := len(requests) - len(self.requests):
            out.warn(
                f"{long} of {len(requests)} held-out prompts are not sampled while this trains: with "
                f"{cfg.block}.runtime.sample_tokens={cfg.runtime.sample_tokens} they are longer than the {context:,} "
                "tokens that the model reads."
            )
        if not is_unsharded and out.main and cfg.runtime.samples:
            log.info("no samples while this trains: its weights are sharded.")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.requests:
            append_samples(self.out.path, self.sample_answers(state.global_step))

    def sample_answers(self, step: int) -> list[Sample]:
        """Return what the model as it is now says to every prompt, in the order of their ids."""
        model, limit = inference_copy(self.trainer.model, self.precision), self.sample_tokens
        sampler = HFSampler.of(model, self.contract.stop_ids, limit, 1.0, len(self.requests))
        by_id = {r.id: c for r, [c] in sampler.complete(self.requests) if isinstance(c, Completion)}
        answered, text = [(r, by_id[r.id]) for r in self.requests], self.contract.text
        return [Sample(step, r.id, r.messages, text(c.token_ids or []), c.finish_reason) for r, c in answered]


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


def inference_copy(model: PreTrainedModel | PeftModel, precision: Precision) -> PreTrainedModel:
    """Return a second model, in eval mode, with what the first has learnt so far. It shares the weights in the
    precision that they are held in, and has rounded copies of the others, as a training forward under autocast has. An
    adapter stays over the weights that it is trained on.

    The first is left as it is: how it attends and reads packed rows, its hooks, its settings of generation. Whatever a
    sampler makes of the copy ends with the copy.
    """
    dtype = torch.bfloat16 if sampling_weights(precision) is Weights.bf16 else torch.float32
    parameters = {id(p): frozen_copy(p, dtype) for p in model.parameters()}
    inference_model = copy.deepcopy(model, parameters)
    for module in inference_model.modules():
        vars(module).pop("forward", None)  # a trainer's: it holds on to the first model's layers
    return (inference_model.get_base_model() if isinstance(inference_model, PeftModel) else inference_model).eval()  # type: ignore[no-any-return]


def frozen_copy(parameter: torch.nn.Parameter, dtype: torch.dtype) -> torch.nn.Parameter:
    """Return the same values without a gradient; weights of 4 bits as they are."""
    if not parameter.is_floating_point():
        return parameter
    return torch.nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
