"""Sampling by transformers' `generate`, for models whose state is more than keys and values, such as recurrent models.
It is slower than `hf`, as it pads batches, and each waits for its longest completion. Its noise is the same."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation import BaseStreamer

from stages.models.loading import load_model, resolve_device, sampling_weights
from stages.samplers.gumbel_max import DrawState
from stages.samplers.sampler import (
    Completion,
    Decoding,
    DrawnCompletion,
    LocalModel,
    Request,
    Sampler,
    longest_first,
)

# nats that two tokens' log-prob may move with the batch, in bf16; padding that is read moves it by 1
ROUNDING = 0.2


class ForceDrawn(LogitsProcessor):
    """A logits processor that leaves `generate` one token per row: the token that was drawn here."""

    def __init__(self, draws: DrawState, top_p: float):
        self.draws = draws
        self.top_p = top_p
        self.tokens = list[Tensor]()  # of each step
        self.logprobs = list[Tensor]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens, logprobs = self.draws.choose(scores, self.top_p)
        self.tokens.append(tokens)
        self.logprobs.append(logprobs)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)


class GenerateSampler(LocalModel, Sampler):
    """A sampler with left-padded batches of at most `rows` candidates, or of one prompt with more candidates."""

    name = "generate"
    # receives every token as it is drawn; transformers allows it with `rows` 1
    streamer: BaseStreamer | None = None

    @classmethod
    def open(cls, source: Path, stop_ids: list[int], decoding: Decoding) -> "GenerateSampler":
        """Return a sampler of the model in a folder."""
        model = open_model(source, decoding)
        rows = decoding.runtime.batch_size
        return cls(model, stop_ids, decoding.max_new_tokens, decoding.top_p, rows)

    def __init__(self, model: PreTrainedModel, *settings: Any):
        super().__init__(model, *settings)
        # The model's own settings (repetition penalty, beams) are ignored, as in `hf`.
        model.generation_config = GenerationConfig()

    @torch.inference_mode()
    def draw(self, requests: Sequence[Request]) -> Iterator[DrawnCompletion]:
        batch = list[tuple[Request, int]]()
        for request in longest_first(requests):
            candidates = [(request, i) for i in range(len(request.temperatures))]
            if batch and len(batch) + len(candidates) > self.rows:
                yield from self._complete(batch)
                batch = []
            batch += candidates
        if batch:
            yield from self._complete(batch)

    def _complete(self, candidates: list[tuple[Request, int]]) -> Iterator[DrawnCompletion]:
        if len(candidates) == 1 or self.can_batch:
            yield from self._batch(candidates, self.limit)
        else:
            for each in candidates:
                yield from self._batch([each], self.limit)

    @cached_property
    def can_batch(self) -> bool:
        """True if a prompt's first draws have the same log-prob in a batch with a longer prompt, unlike RWKV's."""
        short = (Request("short", [], [*range(8)], [0.0], 0), 0)
        longer = (Request("longer", [], [*range(16)], [0.0], 0), 0)
        [(*_, alone)] = self._batch([short], 2)
        [(*_, together), _] = self._batch([short, longer], 2)
        return math.isclose(alone.logprob or 0.0, together.logprob or 0.0, abs_tol=ROUNDING)

    def _batch(
        self, candidates: list[tuple[Request, int]], limit: int
    ) -> Iterator[tuple[Request, int, Completion]]:
        """Complete candidates together, by at most `limit` tokens."""
        rows = [torch.tensor(request.token_ids) for request, _ in candidates]
        ids = pad_sequence(rows, batch_first=True, padding_side="left")
        ones = [torch.ones_like(row) for row in rows]
        mask = pad_sequence(ones, batch_first=True, padding_side="left")
        drawn = ForceDrawn(DrawState.start(candidates, self.model.device), self.top_p)
        self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=[*self.stops],
            pad_token_id=min(self.stops),
            logits_processor=LogitsProcessorList([drawn]),
            streamer=self.streamer,
        )
        tokens_by_row = torch.stack(drawn.tokens, 1).tolist()
        logprobs_by_row = torch.stack(drawn.logprobs, 1).tolist()
        for i, (request, index) in enumerate(candidates):
            yield request, index, until_stop(tokens_by_row[i], logprobs_by_row[i], self.stops)


def open_model(source: Path, decoding: Decoding) -> PreTrainedModel:
    """Load the model in a folder, in the precision and on the device of a sampler."""
    device = resolve_device(decoding.runtime.device)
    return load_model(source, sampling_weights(decoding.precision), device)


def until_stop(tokens: list[int], logprobs: list[float], stops: set[int]) -> Completion:
    """Return drawn tokens up to the first stop as a completion."""
    for length, token in enumerate(tokens, 1):
        if token in stops:
            return Completion(tokens[:length], "stop", sum(logprobs[:length]))
    return Completion(tokens, "length", sum(logprobs))
