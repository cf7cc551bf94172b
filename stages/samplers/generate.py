"""Sampling by transformers' `generate`, for models whose state is more than keys and values, such as recurrent models.
It is slower than `hf`, as it pads batches, and each waits for its longest completion. Its noise is the same."""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation import BaseStreamer

from stages.models.loading import load_model, resolve_device, sampling_weights
from stages.models.packing import allow_left_padding, require_unpacked
from stages.samplers.drawing import Draws
from stages.samplers.sampler import Completion, Decoding, Request, Sampler

# nats that two tokens' log-prob may move with the batch, in bf16; padding that is read moves it by 1
ROUNDING = 0.2


class ForceDrawn(LogitsProcessor):
    """A logits processor that leaves `generate` one token per row: the token that was drawn here."""

    def __init__(self, draws: Draws, top_p: float):
        self.draws = draws
        self.top_p = top_p
        self.chosen = list[tuple[torch.Tensor, torch.Tensor]]()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens, logprobs = self.draws.choose(scores, self.top_p)
        self.chosen.append((tokens, logprobs))
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
        # The model's own settings (repetition penalty, beams) are ignored, as in `hf`.
        model.generation_config = GenerationConfig()
        self.model = model
        self.stops = stop_ids
        self.limit = max_new_tokens
        self.top_p = top_p
        self.rows = rows

    @torch.inference_mode()
    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[Request, list[Completion]]]:
        """Yield every request with all its completions, in the order of completion."""
        requests = sorted(requests, key=lambda r: (-len(r.token_ids), r.id))
        while requests:
            batch = [requests.pop(0)]
            while requests and sum(len(r.temperatures) for r in (*batch, requests[0])) <= self.rows:
                batch.append(requests.pop(0))
            candidates = [(r, i) for r in batch for i in range(len(r.temperatures))]
            batches = (
                [candidates]
                if len(candidates) == 1 or self.can_batch
                else [[each] for each in candidates]
            )
            completions = (
                completion for each in batches for completion in self._batch(each, self.limit)
            )
            for request in batch:
                yield request, [next(completions) for _ in request.temperatures]

    @cached_property
    def can_batch(self) -> bool:
        """True if a prompt's first draws have the same log-prob in a batch with a longer prompt, unlike RWKV's."""
        short, longer = ((Request(str(n), [], [*range(n)], [0.0], 0), 0) for n in (8, 16))
        (alone, *_), (together, *_) = (self._batch(rows, 2) for rows in ([short], [short, longer]))
        return math.isclose(alone.logprob or 0.0, together.logprob or 0.0, abs_tol=ROUNDING)

    def _batch(self, candidates: list[tuple[Request, int]], limit: int) -> Iterator[Completion]:
        rows = [torch.tensor(request.token_ids) for request, _ in candidates]
        ids = pad_sequence(rows, batch_first=True, padding_side="left")
        mask = pad_sequence(
            [torch.ones_like(row) for row in rows], batch_first=True, padding_side="left"
        )
        drawn = ForceDrawn(Draws.start(candidates, self.model.device), self.top_p)
        with allow_left_padding(self.model):
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
        tokens_by_row, logprobs_by_row = (
            torch.stack(steps, 1).tolist() for steps in zip(*drawn.chosen, strict=True)
        )
        for tokens, logprobs in zip(tokens_by_row, logprobs_by_row, strict=True):
            ends = [t for t, token in enumerate(tokens) if token in self.stops]
            length = ends[0] + 1 if ends else len(tokens)
            yield Completion(tokens[:length], "stop" if ends else "length", sum(logprobs[:length]))
