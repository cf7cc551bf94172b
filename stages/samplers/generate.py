"""Sampling by transformers' own `generate`, for models that keep more than keys and values: recurrent ones, say.

It is slower than `hf`, because it pads its batches and each waits for its longest completion. Its noise is the same.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from stages.models.loading import device_of, load_model, sampled_as
from stages.models.packing import padded_anywhere, refuse_packed
from stages.samplers.drawing import Draw, choose
from stages.samplers.sampler import Completion, Decoding, Request, Sampler


class Drawn(LogitsProcessor):
    """Leave `generate` one token to choose in every row: the one we draw."""

    def __init__(self, draws: list[Draw], top_p: float):
        self.draws, self.top_p, self.chosen = draws, top_p, list[tuple[list[int], list[float]]]()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens, logprobs = choose(scores, self.draws, self.top_p)
        self.chosen.append((tokens, logprobs))
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(-1, torch.tensor(tokens, device=scores.device)[:, None], 0.0)


class GenerateSampler(Sampler):
    """Completes prompts in left-padded batches of `rows` candidates, or of one prompt's where it has more.

    A `streamer` is given every token as it is drawn; transformers allows one where `rows` is 1.
    """

    name = "generate"

    @classmethod
    def open(cls, source: Path, stop_ids: list[int], decoding: Decoding) -> "GenerateSampler":
        """Of the model in a folder."""
        model = load_model(source, sampled_as(decoding.precision), device_of(decoding.runtime.device))
        return cls(model, stop_ids, decoding.max_new_tokens, decoding.top_p, decoding.runtime.batch_size)

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: list[int],
        max_new_tokens: int,
        top_p: float,
        rows: int,
        streamer: BaseStreamer | None = None,
    ):
        refuse_packed(model)
        # Of the model's own settings (a repetition penalty, beams) none counts, here as in `hf`.
        model.generation_config = GenerationConfig()
        self.model, self.stops, self.limit, self.top_p, self.rows = model, stop_ids, max_new_tokens, top_p, rows
        self.streamer = streamer

    @torch.inference_mode()
    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[Request, list[Completion]]]:
        """Every request with all its completions, in the order in which they are finished."""
        requests = sorted(requests, key=lambda r: (-len(r.token_ids), r.id))
        while requests:
            batch = [requests.pop(0)]
            while requests and sum(len(r.temperatures) for r in (*batch, requests[0])) <= self.rows:
                batch.append(requests.pop(0))
            completions = iter(self._batch([(r, i) for r in batch for i in range(len(r.temperatures))]))
            for request in batch:
                yield request, [next(completions) for _ in request.temperatures]

    def _batch(self, candidates: list[tuple[Request, int]]) -> Iterator[Completion]:
        width = max(len(request.token_ids) for request, _ in candidates)
        ids = torch.zeros(len(candidates), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, (request, _) in enumerate(candidates):
            ids[i, width - len(request.token_ids) :] = torch.tensor(request.token_ids)
            mask[i, width - len(request.token_ids) :] = 1
        drawn = Drawn([Draw(request, index) for request, index in candidates], self.top_p)
        with padded_anywhere(self.model):
            self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                do_sample=False,
                max_new_tokens=self.limit,
                eos_token_id=self.stops,
                pad_token_id=self.stops[0],
                logits_processor=LogitsProcessorList([drawn]),
                streamer=self.streamer,
            )
        for i in range(len(candidates)):
            tokens = [step[i] for step, _ in drawn.chosen]
            ends = [t for t, token in enumerate(tokens) if token in self.stops]
            length = ends[0] + 1 if ends else len(tokens)
            logprob = sum(logprobs[i] for _, logprobs in drawn.chosen[:length])
            yield Completion(tokens[:length], "stop" if ends else "length", logprob)
