"""Sampling with transformers' own layers, and a key-value cache that is written in place.

A prompt is read once for all its candidates. A row that has finished gives its place to the next candidate at once,
so that the batch stays full and no step is spent on padding.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.samplers import Completion, Request

BLOCK = 256  # tokens of the vocabulary that share a first draw of noise
REFILL = 8  # places are filled again when one in so many is free
PREFILL_TOKENS = 8192  # prompts are read in batches of at most so many tokens, padding included


class Slots:
    """Keys and values of the rows in flight, per layer (rows, heads, length, dim): allocated once, written in place.

    Stands in for transformers' `Cache`: attention calls `update` and attends to what it returns.
    """

    def __init__(self, rows: int, length: int):
        self.rows, self.length = rows, length
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.read: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self.row = self.position = torch.empty(0, dtype=torch.long)
        self.end = 0

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """While prompts are read: keep what they gave. While decoding: write one token per row, return the past."""
        if self.read is not None:
            self.read.append((keys, values))
            return keys, values
        self._allocate(layer, keys, values)
        self.keys[layer][self.row, :, self.position] = keys[:, :, 0]
        self.values[layer][self.row, :, self.position] = values[:, :, 0]
        active = len(self.row)
        return self.keys[layer][:active, :, : self.end], self.values[layer][:active, :, : self.end]

    def fill(self, first: int, source: torch.Tensor) -> None:
        """Copy what was read to the rows from `first` on; `source` names the prompt of each."""
        assert self.read is not None
        for layer, (keys, values) in enumerate(self.read):
            self._allocate(layer, keys, values)
            rows, width = slice(first, first + len(source)), keys.shape[2]
            self.keys[layer][rows, :, :width] = keys[source]
            self.values[layer][rows, :, :width] = values[source]
        self.read = None

    def _allocate(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        if layer == len(self.keys):
            for store, given in ((self.keys, keys), (self.values, values)):
                store.append(given.new_zeros(self.rows, given.shape[1], self.length, given.shape[3]))

    def move(self, source: int, target: int, length: int) -> None:
        for store in (*self.keys, *self.values):
            store[target, :, :length] = store[source, :, :length]


@dataclass
class Row:
    """One candidate in flight."""

    request: Request
    index: int
    noise: torch.Tensor  # (max_new_tokens, blocks + BLOCK)
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0


class HFSampler:
    """Completes prompts with a model on its own device, `rows` candidates at a time."""

    def __init__(self, model: PreTrainedModel, stop_ids: list[int], max_new_tokens: int, top_p: float, rows: int):
        self.model, self.stops, self.limit, self.top_p, self.rows = model, set(stop_ids), max_new_tokens, top_p, rows
        self.device = model.device
        self.blocks = -(-model.get_output_embeddings().out_features // BLOCK)

    @torch.inference_mode()
    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[Request, list[Completion]]]:
        """Every request with all its completions, in the order in which they are finished."""
        requests = sorted(requests, key=lambda r: (len(r.token_ids), r.id))
        queue = deque((request, i) for request in requests for i in range(len(request.temperatures)))
        finished: dict[str, dict[int, Completion]] = {r.id: {} for r in requests}
        longest = max((len(r.token_ids) for r in requests), default=0)
        slots = Slots(self.rows, longest + self.limit)
        active: list[Row] = []
        while queue or active:
            if queue and (not active or self.rows - len(active) >= max(1, self.rows // REFILL)):
                self._admit(queue, active, slots)
            self._step(active, slots)
            for row in self._retire(active, slots):
                reason = "stop" if row.tokens[-1] in self.stops else "length"
                done = finished[row.request.id]
                done[row.index] = Completion(row.tokens, reason, row.logprob)
                if len(done) == len(row.request.temperatures):
                    yield row.request, [done[i] for i in range(len(done))]

    def _admit(self, queue: deque[tuple[Request, int]], active: list[Row], slots: Slots) -> None:
        """Give the next candidates places, and read their prompts but for the last token: each prompt once."""
        prompts: list[Request] = []
        source: list[int] = []
        first = len(active)
        while queue and len(active) < self.rows:
            request, index = queue[0]
            if not prompts or prompts[-1] is not request:
                if prompts and (len(prompts) + 1) * len(request.token_ids) > PREFILL_TOKENS:
                    break
                prompts.append(request)
            queue.popleft()
            source.append(len(prompts) - 1)
            active.append(Row(request, index, self._noise(request, index)))
        width = max(len(p.token_ids) for p in prompts) - 1
        if width == 0:
            return
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt.token_ids) - 1] = torch.tensor(prompt.token_ids[:-1])
        slots.read = []
        positions = torch.arange(width, device=self.device)[None]
        mask = masks(self.model, positions, width)
        options = {"position_ids": positions, "attention_mask": mask, "past_key_values": slots, "use_cache": True}
        self.model.base_model(input_ids=ids.to(self.device), **options)
        slots.fill(first, torch.tensor(source, device=self.device))

    def _step(self, active: list[Row], slots: Slots) -> None:
        """Every row's next token: the one after its last, or after its prompt."""
        positions = torch.tensor([len(r.request.token_ids) + len(r.tokens) - 1 for r in active], device=self.device)
        slots.row, slots.position = torch.arange(len(active), device=self.device), positions
        slots.end = int(positions.max()) + 1
        ids = torch.tensor([(r.tokens or r.request.token_ids)[-1:] for r in active], device=self.device)
        mask = masks(self.model, positions[:, None], slots.end)
        options = {"position_ids": positions[:, None], "attention_mask": mask, "past_key_values": slots}
        logits = self.model(input_ids=ids, use_cache=True, **options).logits[:, -1]
        for row, token, logprob in zip(active, *self._choose(logits, active), strict=True):
            row.tokens.append(token)
            row.logprob += logprob

    def _noise(self, request: Request, index: int) -> torch.Tensor:
        """Gumbel noise for every step of a candidate, from the content of its request alone."""
        if request.temperatures[index] == 0:
            return torch.zeros(self.limit, 0)
        generator = torch.Generator().manual_seed(request.seed_of(index))
        uniform = torch.rand(self.limit, self.blocks + BLOCK, generator=generator, dtype=torch.float64)
        return -torch.log(-torch.log(uniform.clamp(min=1e-300))).float()

    def _choose(self, logits: torch.Tensor, rows: list[Row]) -> tuple[list[int], list[float]]:
        """The next token of every row and its log-prob at temperature 1."""
        logits = logits.float()
        tokens = logits.argmax(-1)
        drawn = [i for i, row in enumerate(rows) if row.request.temperatures[row.index] > 0]
        if drawn:
            noise = torch.stack([rows[i].noise[len(rows[i].tokens)] for i in drawn]).to(self.device)
            heat = torch.tensor([rows[i].request.temperatures[rows[i].index] for i in drawn], device=self.device)
            chosen = logits if len(drawn) == len(rows) else logits[drawn]
            tokens[drawn] = gumbel_max(nucleus(chosen / heat[:, None], self.top_p), noise)
        logprobs = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        return tokens.tolist(), logprobs.tolist()

    def _retire(self, active: list[Row], slots: Slots) -> list[Row]:
        """Take finished rows out; the last row moves to the place of each, so that those in flight stay together."""
        done = [i for i, r in enumerate(active) if r.tokens[-1] in self.stops or len(r.tokens) >= self.limit]
        retired = []
        for place in reversed(done):
            retired.append(active[place])
            last = active.pop()
            if place < len(active):
                slots.move(len(active), place, len(last.request.token_ids) + len(last.tokens))
                active[place] = last
        return retired


def gumbel_max(logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Draw a token per row from softmax(logits) by the Gumbel-max trick, in two steps: a block of the vocabulary by
    its total weight, then a token inside it. The distribution is that of one draw, with far less noise to make.

    Shapes: logits (rows, vocabulary), noise (rows, blocks + BLOCK); returns (rows,).
    """
    rows, vocabulary = logits.shape
    blocks = noise.shape[1] - BLOCK
    if vocabulary < blocks * BLOCK:
        logits = torch.nn.functional.pad(logits, (0, blocks * BLOCK - vocabulary), value=-torch.inf)
    grid = logits.view(rows, blocks, BLOCK)
    block = (grid.logsumexp(-1) + noise[:, :blocks]).argmax(-1)
    inside = grid[torch.arange(rows, device=logits.device), block]
    return block * BLOCK + (inside + noise[:, blocks:]).argmax(-1)


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Mask all but the smallest set of tokens whose probability reaches `top_p` (arXiv:1904.09751)."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(-1, descending=True)
    probability = ordered.softmax(-1)
    outside = probability.cumsum(-1) - probability >= top_p
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)


def masks(model: PreTrainedModel, positions: torch.Tensor, end: int) -> torch.Tensor | dict[str, torch.Tensor]:
    """What attends to what: (rows or 1, 1, tokens, end), by kind of layer where some attend to a window only."""
    config = model.config.get_text_config()
    distance = positions[:, None, :, None] - torch.arange(end, device=positions.device)
    full = distance >= 0
    window, kinds = config.to_dict().get("sliding_window"), set(config.to_dict().get("layer_types") or [])
    sliding = full & (distance < window) if window else full
    if "sliding_attention" in kinds:
        return {"full_attention": prepared(model, full), "sliding_attention": prepared(model, sliding)}
    return prepared(model, full if kinds else sliding)


def prepared(model: PreTrainedModel, mask: torch.Tensor) -> torch.Tensor:
    """As the model's attention takes it: eager attention adds the mask, others read it as true or false."""
    if model.config._attn_implementation != "eager":
        return mask
    return torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
