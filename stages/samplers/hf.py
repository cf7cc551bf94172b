"""Sampling with transformers' own layers, and a key-value cache that is written in place.

A prompt is read once for all its candidates that start together, and what prompts begin with alike once for those that
are read together. A finished row leaves the batch after its step, and the next candidates are admitted once one place
in eight is free: no step is spent on padding.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.hardware import memory
from stages.hardware.model_shape import ModelShape
from stages.models.loading import device_of, load_model, sampled_as
from stages.models.packing import attention_of, lay_out, only_attends, refuse_packed
from stages.models.run_attention import RunLayout
from stages.samplers.drawing import Draw, choose
from stages.samplers.generate import GenerateSampler
from stages.samplers.sampler import Completion, Decoding, Request, Sampler

REFILL = 8  # places are filled again when one in so many is free
PREFILL_TOKENS = 8192  # prompts are read in batches of at most so many tokens, padding included
SHORTEST_SHARED = 8  # tokens that a prompt has to share: to attend to them apart costs a little for every prompt


class Slots:
    """Keys and values of the rows in flight, per layer (rows, heads, length, dim): allocated once, written in place.

    Stands in for transformers' `Cache`: attention calls `update` and attends to what it returns.
    """

    def __init__(self, rows: int, length: int):
        self.rows, self.length = rows, length
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.read: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self.places: torch.Tensor | None = None  # (prompts, width) in the row, where prompts are packed
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
        places = None if self.places is None else self.places[source]
        for layer, (keys, values) in enumerate(self.read):
            self._allocate(layer, keys, values)
            for store, states in ((self.keys, keys), (self.values, values)):
                found = states[source] if places is None else states[0].transpose(0, 1)[places].transpose(1, 2)
                store[layer][first : first + len(source), :, : found.shape[2]] = found
        self.read = None

    def _allocate(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        if layer == len(self.keys):
            for store, given in ((self.keys, keys), (self.values, values)):
                store.append(given.new_zeros(self.rows, given.shape[1], self.length, given.shape[3]))

    def get_seq_length(self, *_: Any) -> int:
        """Models count positions from it where they are given none. Ours always are, so that it may be 0."""
        return 0

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy rows to places that are free; no place is both source and target."""
        for store in (*self.keys, *self.values) if targets else ():
            store[targets, :, : self.end] = store[sources, :, : self.end]


@dataclass
class Row(Draw):
    """One candidate in flight."""

    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0


class HFSampler(Sampler):
    """Completes prompts with a model on its own device, `rows` candidates at a time, fewer where memory is short."""

    name = "hf"

    @classmethod
    def open(cls, source: Path, stop_ids: list[int], decoding: Decoding) -> Sampler:
        """Of the model in a folder; `generate`, where its state is no key-value cache of ours to hold."""
        model = load_model(source, sampled_as(decoding.precision), device_of(decoding.runtime.device))
        rows = decoding.runtime.batch_size
        if only_attends(model):
            prepack(model, rows)
        return cls.of(model, stop_ids, decoding.max_new_tokens, decoding.top_p, rows)

    @classmethod
    def of(cls, model: PreTrainedModel, stop_ids: list[int], max_new_tokens: int, top_p: float, rows: int) -> Sampler:
        """Of a model in memory; `generate` likewise."""
        kind = cls if only_attends(model) else GenerateSampler
        return kind(model, stop_ids, max_new_tokens, top_p, rows)

    def __init__(self, model: PreTrainedModel, stop_ids: list[int], max_new_tokens: int, top_p: float, rows: int):
        refuse_packed(model)
        self.model, self.stops, self.limit, self.top_p, self.rows = model, set(stop_ids), max_new_tokens, top_p, rows
        self.device = model.device
        self.packs = lay_out(model)  # prompts are then read without padding

    @torch.inference_mode()
    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[Request, list[Completion]]]:
        """Every request with all its completions, in the order in which they are finished."""
        requests = sorted(requests, key=lambda r: (-len(r.token_ids), r.id))
        queue = deque((request, i) for request in requests for i in range(len(request.temperatures)))
        finished: dict[str, dict[int, Completion]] = {r.id: {} for r in requests}
        longest = max((len(r.token_ids) for r in requests), default=0)
        slots = Slots(min(len(queue), self._places(longest + self.limit)), longest + self.limit)
        active: list[Row] = []
        while queue or active:
            if queue and (not active or slots.rows - len(active) >= max(1, slots.rows // REFILL)):
                self._admit(queue, active, slots)
            self._step(active, slots)
            for row in self._retire(active, slots):
                reason = "stop" if row.tokens[-1] in self.stops else "length"
                done = finished[row.request.id]
                done[row.index] = Completion(row.tokens, reason, row.logprob)
                if len(done) == len(row.request.temperatures):
                    yield row.request, [done[i] for i in range(len(done))]

    def _places(self, length: int) -> int:
        """How many rows of `length` tokens are decoded at once."""
        shape = ModelShape.of(self.model.config.to_dict())
        size, device = self.model.dtype.itemsize, self.device.type
        return memory.decoded_at_once(shape, size, self.rows, length, device) if shape else self.rows

    def _admit(self, queue: deque[tuple[Request, int]], active: list[Row], slots: Slots) -> None:
        """Give the next candidates places, and read their prompts but for the last token: each prompt once."""
        prompts: list[list[int]] = []
        source: list[int] = []
        first, last = len(active), None
        while queue and len(active) < slots.rows:
            request, index = queue[0]
            if last is not request:
                if prompts and len(prompts[0]) * (len(prompts) + 1) > PREFILL_TOKENS:
                    break
                prompts.append(request.token_ids[:-1])
                last = request
            queue.popleft()
            source.append(len(prompts) - 1)
            active.append(Row(request, index))
        if prompts[0]:  # the longest
            self._read(prompts, slots)
            slots.fill(first, torch.tensor(source, device=self.device))

    def _read(self, prompts: list[list[int]], slots: Slots) -> None:
        """Put the keys and values that every layer computes for the prompts into `slots.read`."""
        slots.read = []
        if self.packs:
            order, continued, lengths = shared_beginnings(prompts)
            own = [prompts[index][length:] for index, length in zip(order, lengths, strict=True)]
            layout = RunLayout.of([len(tokens) for tokens in own], self.device, lengths, continued)
            slots.places = layout.sequences[0][torch.tensor(order).argsort()]
            ids = torch.tensor([[token for tokens in own for token in tokens]])
            options: dict[str, Any] = {"position_ids": layout.positions, "layout": layout}
        else:
            ids = torch.zeros(len(prompts), len(prompts[0]), dtype=torch.long)
            for i, prompt in enumerate(prompts):
                ids[i, : len(prompt)] = torch.tensor(prompt)
            positions = torch.arange(ids.shape[1], device=self.device)[None]
            options = {"position_ids": positions, "attention_mask": masks(self.model, positions, ids.shape[1])}
        self.model.base_model(input_ids=ids.to(self.device), past_key_values=slots, use_cache=True, **options)

    def _step(self, active: list[Row], slots: Slots) -> None:
        """Every row's next token: the one after its last, or after its prompt."""
        positions = torch.tensor([len(r.request.token_ids) + len(r.tokens) - 1 for r in active], device=self.device)
        slots.row, slots.position = torch.arange(len(active), device=self.device), positions
        slots.end = int(positions.max()) + 1
        ids = torch.tensor([(r.tokens or r.request.token_ids)[-1:] for r in active], device=self.device)
        mask = masks(self.model, positions[:, None], slots.end)
        options = {"position_ids": positions[:, None], "attention_mask": mask, "past_key_values": slots}
        logits = self.model(input_ids=ids, use_cache=True, **options).logits[:, -1]
        for row, token, logprob in zip(active, *choose(logits, active, self.top_p), strict=True):
            row.tokens.append(token)
            row.logprob += logprob

    def _retire(self, active: list[Row], slots: Slots) -> list[Row]:
        """Take finished rows out; rows behind the new end move into their places, so that all stay together."""
        done = [r.tokens[-1] in self.stops or len(r.tokens) >= self.limit for r in active]
        retired = [row for row, ended in zip(active, done, strict=True) if ended]
        left = len(active) - len(retired)
        free = [i for i in range(left) if done[i]]
        behind = [i for i in range(left, len(active)) if not done[i]]
        slots.move(behind, free)
        for place, source in zip(free, behind, strict=True):
            active[place] = active[source]
        del active[left:]
        return retired


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
    if attention_of(model) != "eager":
        return mask
    return torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)


def shared_beginnings(prompts: list[list[int]]) -> tuple[list[int], list[int], list[int]]:
    """Return an order of the prompts, as indices; and for each prompt, in that order, whose beginning it continues, as
    a place in the order, and how many tokens that is: 0 for a prompt that is read whole."""
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    continued, lengths = list[int](), list[int]()
    for place, index in enumerate(order):
        whole = continued[-1] if place else 0
        both = zip(prompts[order[whole]], prompts[index], strict=False)
        length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both)) if place else 0
        continued.append(whole if length >= SHORTEST_SHARED else place)
        lengths.append(length if length >= SHORTEST_SHARED else 0)
    return order, continued, lengths


class Prepacked(torch.nn.Module):
    """A linear layer that cannot be trained, whose weight is laid out once as oneDNN multiplies it. PyTorch lays a
    weight out anew for every product: with the few hundred rows of a decoding step that is a tenth of the product in
    fp32, and a third in bf16. `rows`: how many it mostly multiplies at once; any number may come."""

    def __init__(self, linear: torch.nn.Linear, rows: int):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out)."""
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")


@torch.inference_mode()
def prepack(model: PreTrainedModel, rows: int) -> PreTrainedModel:
    """Give the model, in place, prepacked linear layers, one after the other: no more memory is needed than for the
    largest of them, and for a head that is tied, whose embedding stays. Left as they are: those on other devices, of
    other types (4 bits), all of them where PyTorch has no oneDNN, and in bf16 where this CPU only emulates it."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return model
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    dtypes = (torch.float32, torch.bfloat16) if bf16 else (torch.float32,)
    plain = [
        name
        for name, layer in model.named_modules(remove_duplicate=False)
        if type(layer) is torch.nn.Linear and layer.weight.device.type == "cpu" and layer.weight.dtype in dtypes
    ]
    for name in plain:  # not the layers: whoever has these keeps their weights
        model.set_submodule(name, Prepacked(model.get_submodule(name), rows))
    return model
