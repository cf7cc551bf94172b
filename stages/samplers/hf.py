"""Sampling with transformers' layers and a key-value cache that is written in place. A prompt is read once for
candidates that start together, and a common beginning once for prompts that are read together. A finished row leaves
the batch as soon as the host knows. New candidates enter when one place in eight is free, so no step is spent on
padding. Tokens stay on the device between steps."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.hardware import memory
from stages.hardware.model_shape import ModelShape
from stages.models.packing import (
    has_only_attention,
    install_run_attention,
    require_unpacked,
)
from stages.models.run_attention import RunLayout, send_tensor
from stages.samplers.generate import GenerateSampler, open_model
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
from stages.samplers.slots import Row, Slots, round_up
from stages.store.text_units import count_shared_prefix

REFILL = 8  # new candidates enter when 1/REFILL of the places is free
PREFILL_TOKENS = 8192  # tokens of prompts that are read in one batch, padding included
SHORTEST_SHARED = 8  # shared tokens that are worth a separate attention


class Pace(NamedTuple):
    """The pace at which a device decodes; results do not depend on it. `steps`: steps between two transfers to the
    host, each of which waits for the device. `rows`, `tokens`: the batch and the attended length are multiples, so
    that steps repeat their shapes and a CUDA graph could hold a step."""

    steps: int
    rows: int
    tokens: int


ON_CPU = Pace(1, 1, 1)
ON_ACCELERATOR = Pace(8, 32, 256)


class HFSampler(LocalModel, Sampler):
    """A sampler that decodes `rows` candidates at once, or fewer if memory is short."""

    name = "hf"

    @classmethod
    def open(cls, source: Path, stop_ids: list[int], decoding: Decoding) -> Sampler:
        """Return a sampler of the model in a folder, as `of` does."""
        model = open_model(source, decoding)
        rows = decoding.runtime.batch_size
        if has_only_attention(model):
            prepack(model, rows)
        return cls.of(model, stop_ids, decoding.max_new_tokens, decoding.top_p, rows)

    @classmethod
    def of(cls, model: PreTrainedModel, *settings: Any) -> Sampler:
        """Return a sampler of a model in memory: `generate` if the model's state is more than keys and values, or its
        layers cannot read packed prompts."""
        require_unpacked(model)
        if install_run_attention(model):
            return cls(model, *settings)
        return GenerateSampler(model, *settings)

    def __init__(self, model: PreTrainedModel, *settings: Any):
        super().__init__(model, *settings)
        self.device = model.device
        self.pace = ON_CPU if model.device.type == "cpu" else ON_ACCELERATOR

    @torch.inference_mode()
    def draw(self, requests: Sequence[Request]) -> Iterator[DrawnCompletion]:
        queue = deque[Row]()
        for request in longest_first(requests):
            queue += [Row(request, index) for index in range(len(request.temperatures))]
        if not queue:
            return
        length = len(queue[0].request.token_ids) + self.limit
        slots = Slots(min(len(queue), self._rows_at_once(length)), length, self.device)
        enough = max(1, slots.rows // REFILL)
        active: list[Row] = []
        while queue or active:
            if queue and (not active or slots.rows - len(active) >= enough):
                self._admit(queue, active, slots)
            self._decode(active, slots)
            for row in self._retire(active, slots):
                reason = "length"
                if row.tokens[-1] in self.stops:
                    reason = "stop"
                yield row.request, row.index, Completion(row.tokens, reason, row.logprob)

    def _rows_at_once(self, length: int) -> int:
        """Return how many rows of `length` tokens are decoded at once, at most those that fit into memory."""
        shape = ModelShape.from_config(self.model.config.to_dict())
        if not shape:
            return self.rows
        size = self.model.dtype.itemsize
        return memory.decoded_at_once(shape, size, self.rows, length, self.device.type)

    def _admit(self, queue: deque[Row], active: list[Row], slots: Slots) -> None:
        """Move candidates from the queue into free places, and read their prompts once, without the last token."""
        prompts: list[list[int]] = []
        source: list[int] = []
        slots.first = len(active)
        last = None
        while queue and len(active) < slots.rows:
            request = queue[0].request
            if last is not request:
                if prompts and len(prompts[0]) * (len(prompts) + 1) > PREFILL_TOKENS:
                    break
                prompts.append(request.token_ids[:-1])
                last = request
            source.append(len(prompts) - 1)
            active.append(queue.popleft())
        if prompts[0]:  # the first prompt is the longest
            self._read(prompts, source, slots)

    def _read(self, prompts: list[list[int]], source: list[int], slots: Slots) -> None:
        """Read the prompts, and store their keys and values in the rows from `slots.first` on. `source`: the index of
        each row's prompt."""
        order, continued, shared = shared_beginnings(prompts)
        tokens = list[int]()
        lengths = list[int]()
        for index, length in zip(order, shared, strict=True):
            remainder = prompts[index][length:]
            tokens += remainder
            lengths.append(len(remainder))
        layout = RunLayout.from_lengths(lengths, self.device, shared, continued)
        places = torch.tensor(order).argsort()[source]
        slots.prompt_places = layout.sequences[0][send_tensor(places, self.device)]
        self.model.base_model(
            input_ids=send_tensor(torch.tensor([tokens]), self.device),
            position_ids=layout.positions,
            layout=layout,
            past_key_values=slots,
            use_cache=True,
        )
        slots.prompt_places = None

    def _decode(self, active: list[Row], slots: Slots) -> None:
        """Append the next tokens to every row: `pace.steps`, or fewer if the row ends."""
        draws = slots.load(active, self.pace.rows)
        longest = max(row.length for row in active)
        most_left = self.limit - min(len(row.tokens) for row in active)
        tokens_by_step = list[Tensor]()
        logprobs_by_step = list[Tensor]()
        for step in range(min(self.pace.steps, most_left)):
            slots.end = round_up(longest + step, self.pace.tokens, slots.length)
            tokens, logprobs = self._step(slots, draws)
            tokens_by_step.append(tokens)
            logprobs_by_step.append(logprobs)
        tokens_by_row = torch.stack(tokens_by_step, 1).tolist()
        logprobs_by_row = torch.stack(logprobs_by_step, 1).tolist()
        for i, row in enumerate(active):  # without the rows that pad the batch
            for token, logprob in zip(tokens_by_row[i], logprobs_by_row[i], strict=True):
                if not self._is_finished(row):
                    row.tokens.append(token)
                    row.logprob += logprob

    def _step(self, slots: Slots, draws: DrawState) -> tuple[Tensor, Tensor]:
        """Return the next token of every row, and its log-prob. The host neither sends nor receives anything."""
        ids, positions = slots.inputs[:2, : slots.active]
        output = self.model(
            input_ids=ids[:, None],
            position_ids=positions[:, None],
            attention_mask=attention_masks(self.model, positions[:, None], slots.end),
            past_key_values=slots,
            use_cache=True,
        )
        tokens, logprobs = draws.choose(output.logits[:, -1], self.top_p)
        ids.copy_(tokens)
        positions.add_(1).clamp_(max=slots.length - 1)  # finished rows stay within their places
        return tokens, logprobs

    def _is_finished(self, row: Row) -> bool:
        return len(row.tokens) >= self.limit or not self.stops.isdisjoint(row.tokens[-1:])

    def _retire(self, active: list[Row], slots: Slots) -> list[Row]:
        """Remove and return finished rows. Rows behind the new end move into the free places."""
        retired = list[Row]()
        done = list[int]()
        left = list[int]()
        for i, row in enumerate(active):
            if self._is_finished(row):
                retired.append(row)
                done.append(i)
            else:
                left.append(i)
        free = [i for i in done if i < len(left)]
        behind = [i for i in left if i >= len(left)]
        slots.move(behind, free)
        for place, source in zip(free, behind, strict=True):
            active[place] = active[source]
        del active[len(left) :]
        return retired


def attention_masks(
    model: PreTrainedModel, positions: Tensor, end: int
) -> Tensor | dict[str, Tensor]:
    """Return the mask of tokens to attend to: (rows or 1, 1, tokens, end), by kind of layer if some have a window."""
    config = model.config.get_text_config().to_dict()
    kinds = config.get("layer_types") or []
    distance = positions[:, None, :, None] - torch.arange(end, device=positions.device)
    visible = distance >= 0
    within = visible
    if config.get("sliding_window"):
        within = visible & (distance < config["sliding_window"])
    if not kinds:
        return within
    if "sliding_attention" not in kinds:
        return visible
    return {"full_attention": visible, "sliding_attention": within}


def shared_beginnings(prompts: list[list[int]]) -> tuple[list[int], list[int], list[int]]:
    """Return an order of the prompts as indices. For each place in the order, also return the place of the prompt
    whose beginning it continues, and the number of shared tokens: 0 for a prompt that is read whole."""
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    continued = list[int]()
    lengths = list[int]()
    whole = 0  # the place of the last prompt that is read whole
    for place, index in enumerate(order):
        shared = count_shared_prefix(prompts[order[whole]], prompts[index])
        if place == whole or shared < SHORTEST_SHARED:
            whole = place
            shared = 0
        continued.append(whole)
        lengths.append(shared)
    return order, continued, lengths


class Prepacked(torch.nn.Module):
    """A frozen linear layer whose weight is stored in oneDNN's layout for products with about `rows` rows. PyTorch
    converts a weight for every product: with a few hundred rows, a tenth of the time in fp32, a third in bf16."""

    def __init__(self, linear: torch.nn.Linear, rows: int):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        """Return the product, from (…, in) to (…, out)."""
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")


@torch.inference_mode()
def prepack(model: PreTrainedModel, rows: int) -> PreTrainedModel:
    """Replace the model's linear layers by prepacked ones, in place, and return the model. Layers are copied one at a
    time, which needs memory for the largest layer and for a tied head. Layers on other devices or of other types (4
    bits) stay. All layers stay if PyTorch has no oneDNN, and bf16 layers if the CPU only emulates bf16."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return model
    dtypes = [torch.float32]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        dtypes.append(torch.bfloat16)
    # names only: references to the layers would keep their weights in memory
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for name in names:
        layer = model.get_submodule(name)
        # peft reads its own weights itself where experts are adapted
        if type(layer) is not torch.nn.Linear or "lora_" in name:
            continue
        if layer.weight.device.type == "cpu" and layer.weight.dtype in dtypes:
            model.set_submodule(name, Prepacked(layer, rows))
    return model
