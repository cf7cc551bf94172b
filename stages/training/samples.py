"""Sample from a model during training: at every evaluation it answers the same few held-out prompts, greedily."""

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from stages.config.blocks.objective import Training
from stages.config.blocks.runtimes import SampledRuntime
from stages.config.choices import Precision, Sharding
from stages.models.contract import Contract
from stages.models.loading import context_length, sampling_weights, torch_dtype
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import Completion, Request
from stages.store.records import Message, prompt_id
from stages.store.workspace import Sample, StageDir, append_samples


class SampleWriter(TrainerCallback):
    """Write the answers to the node's `samples.jsonl`. Answers before the first step are the start model's: in DPO the
    reference's, if the policy begins as the reference.

    An inference copy answers, without dropout and without random numbers, so training continues exactly as without
    samples. With several processes the first one samples, and the others wait at the next step. If weights are
    sharded, no process has them all, and nothing is sampled. A prompt is left out if the model's context has no room for
    its answer."""

    def __init__(
        self,
        trainer: Trainer,
        cfg: Training,
        prompts: Iterable[list[Message]],
        contract: Contract,
        out: StageDir,
    ):
        assert isinstance(cfg.runtime, SampledRuntime)
        self.trainer = trainer
        self.precision = cfg.precision
        self.contract = contract
        self.out = out
        self.sample_tokens = cfg.runtime.sample_tokens
        context = context_length(trainer.model.config) or math.inf
        self.requests = list[Request]()
        if cfg.runtime.sharding is not Sharding.none or not out.is_main:
            return
        for messages in prompts:
            request = Request(prompt_id(messages), messages, contract.prompt(messages), [0.0], 0)
            if len(request.token_ids) + cfg.runtime.sample_tokens <= context:
                self.requests.append(request)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.requests:
            append_samples(self.out.path, self.sample_answers(state.global_step))

    def sample_answers(self, step: int) -> list[Sample]:
        """Return the current model's answer to every prompt, in the order of their ids."""
        model = inference_copy(self.trainer.model, self.precision)
        stop_ids = self.contract.stop_ids
        sampler = HFSampler.of(model, stop_ids, self.sample_tokens, 1.0, len(self.requests))
        by_id = dict[str, Sample]()
        for request, [completion] in sampler.complete(self.requests):
            assert isinstance(completion, Completion)
            text = self.contract.text(completion.token_ids or [])
            by_id[request.id] = Sample(
                step, request.id, request.messages, text, completion.finish_reason
            )
        return [by_id[request.id] for request in self.requests]


class FirstPrompts:
    """The `count` prompts with the lowest hashes: the same prompts for the same rows in any order."""

    def __init__(self, count: int):
        self.count = count
        self.by_id = dict[str, list[Message]]()

    def add(self, prompt: list[Message]) -> None:
        self.by_id[prompt_id(prompt)] = prompt
        if len(self.by_id) > self.count:
            del self.by_id[max(self.by_id)]

    def __iter__(self) -> Iterator[list[Message]]:
        return (self.by_id[name] for name in sorted(self.by_id))


def inference_copy(
    model: PreTrainedModel | PeftModel, precision: Precision, skeleton: Any = None
) -> PreTrainedModel:
    """Return a copy of the model in eval mode. It shares weights that have the precision of training's forwards, and
    has rounded copies of the others. An adapter stays on top of the weights under it. Of a model whose weights are
    sharded, with its `skeleton`, every process gets the whole weights; all must call this at once.

    The original keeps its attention, packed rows, hooks and generation settings: a sampler changes only the copy."""
    inference_model = copy_model(model, precision, skeleton)
    if isinstance(inference_model, PeftModel):
        inference_model = inference_model.get_base_model()
    return inference_model.eval()  # type: ignore[no-any-return]


def merged_copy(model: PeftModel, precision: Precision) -> PreTrainedModel:
    """Return a copy as `inference_copy`, with the adapter added to the weights under it. The original's stay."""
    return copy_model(model, precision).merge_and_unload(safe_merge=True).eval()  # type: ignore[no-any-return]


def copy_skeleton(model: Any) -> Any:
    """Return a copy of the model without values of its weights. Make it before the model is sharded."""
    return copy.deepcopy(model, {id(p): p.detach().to("meta") for p in model.parameters()})


def copy_model(model: Any, precision: Precision, skeleton: Any = None) -> Any:
    """Return a copy of the model, or of its skeleton, with the weights of `inference_copy`, and with the forwards of
    its classes."""
    dtype = torch_dtype(sampling_weights(precision))
    weights = {name: frozen_copy(p, dtype) for name, p in model.named_parameters()}
    skeleton = skeleton or model
    copied = copy.deepcopy(
        skeleton, {id(p): weights[name] for name, p in skeleton.named_parameters()}
    )
    if skeleton is not model:
        copied.to(next(iter(weights.values())).device)  # its buffers
    for module in copied.modules():
        # a trainer's forward refers to the original model's layers, and
        for name in ("forward", "_original_forward"):
            # accelerate's to the copy, which it would keep until garbage is collected
            vars(module).pop(name, None)
    return copied


def frozen_copy(parameter: torch.nn.Parameter, dtype: torch.dtype) -> torch.nn.Parameter:
    """Return the same values, of a sharded weight the whole, without a gradient; 4-bit weights unchanged."""
    if isinstance(parameter, DTensor):
        whole: Any = parameter.detach()
        parameter = whole.full_tensor()
    if not parameter.is_floating_point():
        return parameter
    return torch.nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
