"""The places of active rows on a device: keys, values and inputs, allocated once and written in place."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stages.models.run_attention import send_tensor
from stages.samplers.gumbel_max import DrawState
from stages.samplers.sampler import Request


@dataclass
class Row:
    """One active candidate, with its tokens and the sum of their log-probs."""

    request: Request
    index: int
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0

    def __post_init__(self) -> None:
        self.seed = self.request.seed_of(self.index)

    @property
    def length(self) -> int:
        """The number of tokens, with the prompt's."""
        return len(self.request.token_ids) + len(self.tokens)


class Slots:
    """Places for active rows on the device, allocated once and written in place: per layer the keys and values (rows,
    heads, length, dim), and per row the next token to read, its position, and the random state. It replaces
    transformers' `Cache`: attention calls `update` and attends to the returned tensors."""

    def __init__(self, rows: int, length: int, device: torch.device):
        self.rows = rows
        self.length = length
        self.device = device
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.first = 0  # the first row whose prompt is read
        # (rows, width), while prompts are read: the positions in the packed row of each row's prompt
        self.prompt_places: Tensor | None = None
        # tokens, positions, seeds, steps
        self.inputs = torch.zeros(4, rows, dtype=torch.long, device=device)
        self.heat = torch.zeros(rows, device=device)
        self.row = torch.arange(rows, device=device)
        self.active = self.end = 0

    def load(self, rows: list[Row], multiple: int) -> DrawState:
        """Write the rows' inputs, and return their random state. Rows that pad the batch keep earlier inputs."""
        inputs = list[tuple[int, int, int, int]]()
        temperatures = list[float]()
        for row in rows:
            last = (row.tokens or row.request.token_ids)[-1]
            inputs.append((last, row.length - 1, row.seed, len(row.tokens)))
            temperatures.append(row.request.temperatures[row.index])
        n = len(rows)
        self.inputs[:, :n] = send_tensor(torch.tensor(inputs).T, self.device)
        self.heat[:n] = send_tensor(torch.tensor(temperatures), self.device)
        self.active = round_up(n, multiple, self.rows)
        _, _, seeds, steps = self.inputs[:, : self.active]
        return DrawState(seeds, steps, self.heat[: self.active], any(temperatures))

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values, and return those to attend to: of prompts, or while decoding all of a row's."""
        self._allocate(layer, keys, values)
        if self.prompt_places is not None:
            rows = slice(self.first, self.first + len(self.prompt_places))
            for store, new in ((self.keys[layer], keys), (self.values[layer], values)):
                prompts = new[0].transpose(0, 1)[self.prompt_places].transpose(1, 2)
                store[rows, :, : prompts.shape[2]] = prompts
            return keys, values
        active = self.row[: self.active]
        positions = self.inputs[1, : self.active]
        read = list[Tensor]()
        for store, new in ((self.keys[layer], keys), (self.values[layer], values)):
            store[active, :, positions] = new[:, :, 0]
            read.append(store[: self.active, :, : self.end])
        return read[0], read[1]

    def _allocate(self, layer: int, keys: Tensor, values: Tensor) -> None:
        if layer == len(self.keys):
            for store, states in ((self.keys, keys), (self.values, values)):
                _, heads, _, dim = states.shape
                store.append(states.new_zeros(self.rows, heads, self.length, dim))

    def get_seq_length(self, *_: Any) -> int:
        """Return 0. Models start positions from this length only if they get no positions, and here they always do."""
        return 0

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy rows to free places. No place may be both source and target."""
        if targets:
            source, target = send_tensor(torch.tensor([sources, targets]), self.device)
            for store in (*self.keys, *self.values):
                store[target, :, : self.end] = store[source, :, : self.end]


def round_up(count: int, multiple: int, most: int) -> int:
    """Return the next multiple from `count` on, at most `most`."""
    return min(-(-count // multiple) * multiple, most)
