"""Sampling by transformers' `generate`, for models whose state is more than keys and values, such as recurrent models.
It is slower than `hf`, as it pads batches, and each waits for its longest completion. Its noise is the same."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation import BaseStreamer

from stages.models.loading import load_model, resolve_device, sampling_weights
from stages.models.packing import ATTENTION, attention_name, require_unpacked
from stages.samplers.drawing import Draws
from stages.samplers.sampler import (
    Completion,
    Decoding,
    Drawn,
    Request,
    Sampler,
    longest_first,
    whole_requests,
)

# nats that two tokens' log-prob may move with the batch, in bf16; padding that is read moves it by 1
ROUNDING = 0.2


class ForceDrawn(LogitsProcessor):
    """A logits processor that leaves `generate` one token per row: the token that was drawn here."""

    def __init__(self, draws: Draws, top_p: float):
        self.draws = draws
        self.top_p = top_p
        self.tokens = list[Tensor]()  # of each step
        self.logprobs = list[Tensor]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens, logprobs = self.draws.choose(scores, self.top_p)
        self.tokens.append(tokens)
        self.logprobs.append(logprobs)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)


class GenerateSampler(Sampler):
    """A sampler with left-padded batches of at most `rows` candidates, or of one prompt with more candidates."""

    name = "generate"
    # receives every token as it is drawn; transformers allows it with `rows` 1
    streamer: BaseStreamer | None = None

    @classmethod
    def open(cls, source: Path, stop_ids: list[int], decoding: Decoding) -> "GenerateSampler":
        """Return a sampler of the model in a folder."""
        model = load_model(
            source, sampling_weights(decoding.precision), resolve_device(decoding.runtime.device)
        )
        return cls(
            model, stop_ids, decoding.max_new_tokens, decoding.top_p, decoding.runtime.batch_size
        )

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: list[int],
        max_new_tokens: int,
        top_p: float,
        rows: int,
    ):
        require_unpacked(model)
        if attention_name(model) == ATTENTION:  # it gets no masks for padding on the left
            raise ValueError("`hf` changed this model's attention; load it again for `generate`")
        # The model's own settings (repetition penalty, beams) are ignored, as in `hf`.
        model.generation_config = GenerationConfig()
        self.model = model
        self.stops = stop_ids
        self.limit = max_new_tokens
        self.top_p = top_p
        self.rows = rows

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[Request, list[Completion]]]:
        """Yield every request with all its completions, in the order of completion."""
        return whole_requests(self._draw(requests))

    @torch.inference_mode()
    def _draw(self, requests: Sequence[Request]) -> Iterator[Drawn]:
        batch = list[tuple[Request, int]]()
        for request in longest_first(requests):
            candidates = [(request, i) for i in range(len(request.temperatures))]
            if batch and len(batch) + len(candidates) > self.rows:
                yield from self._complete(batch)
                batch = []
            batch += candidates
        if batch:
            yield from self._complete(batch)

    def _complete(self, candidates: list[tuple[Request, int]]) -> Iterator[Drawn]:
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
        drawn = ForceDrawn(Draws.start(candidates, self.model.device), self.top_p)
        self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=self.stops,
            pad_token_id=self.stops[0],
            logits_processor=LogitsProcessorList([drawn]),
            streamer=self.streamer,
        )
        tokens_by_row = torch.stack(drawn.tokens, 1).tolist()
        logprobs_by_row = torch.stack(drawn.logprobs, 1).tolist()
        for i, (request, index) in enumerate(candidates):
            yield request, index, until_stop(tokens_by_row[i], logprobs_by_row[i], self.stops)


def until_stop(tokens: list[int], logprobs: list[float], stops: list[int]) -> Completion:
    """Return drawn tokens up to the first stop as a completion."""
    for length, token in enumerate(tokens, 1):
        if token in stops:
            return Completion(tokens[:length], "stop", sum(logprobs[:length]))
    return Completion(tokens, "length", sum(logprobs))
