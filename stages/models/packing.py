"""Forward passes that spend nothing on padding, and nothing on reading the same prefix twice.

All tokens of a batch stand in one row, so that every layer sees each of them once. Only attention needs to know what
belongs together: it goes through the row run by run. A run is a whole sequence, or what a sequence adds to the
beginning of the one before it: two completions of a prompt are the run prompt + chosen, and the run rejected, which
also looks at the prompt.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION = "plumbline_packed"
RUN_BY_RUN = ("cpu",)  # devices on which a call more costs nothing and a padded token much


@dataclass
class Layout:
    """The runs of a packed row.

    lengths: tokens of every run, in order.
    prefixes: of the run before it, how many first tokens a run goes on from; 0 for a whole sequence.
    positions: (1, tokens), every token's position in its sequence.
    """

    lengths: list[int]
    prefixes: list[int]
    positions: torch.Tensor
    seen: bool = False  # by a layer's attention
    masks: dict[tuple[int, int | None], torch.Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, lengths: list[int], device: torch.device, prefixes: list[int] | None = None) -> "Layout":
        """Of runs that are whole sequences, unless they go on from a prefix."""
        prefixes = prefixes or [0] * len(lengths)
        positions = [torch.arange(p, p + n) for n, p in zip(lengths, prefixes, strict=True)]
        return cls(lengths, prefixes, torch.cat(positions)[None].to(device))

    @classmethod
    def of_segments(cls, position_ids: torch.Tensor) -> "Layout":
        """From a packed row, (1, tokens), whose positions start again at 0 with every example."""
        starts = [*(position_ids[0] == 0).nonzero()[:, 0].tolist(), position_ids.shape[1]]
        lengths = [b - a for a, b in pairwise(starts)]
        return cls(lengths, [0] * len(lengths), position_ids)

    @cached_property
    def sequences(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(runs, width), the places in the row of every run's tokens behind those of its prefix, padded on the right
        with 0; and (tokens,), where in the flattened former a token stands in its own run."""
        ends = [*accumulate(self.lengths)]
        rows, own = [], []
        for end, length, prefix, before in zip(ends, self.lengths, self.prefixes, [0, *self.lengths], strict=False):
            start = end - length
            rows.append(torch.cat([torch.arange(start - before, start - before + prefix), torch.arange(start, end)]))
            own.append(torch.arange(prefix, prefix + length))
        width = max(map(len, rows))
        sources = torch.cat([i * width + places for i, places in enumerate(own)])
        device = self.positions.device
        return pad_sequence(rows, batch_first=True).to(device), sources.to(device)

    def spread(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, tokens, …) as (runs, tokens of the longest, …), 0 in the padding on the right."""
        return pad_sequence(list(torch.split(packed[0], self.lengths)), batch_first=True)

    def mask(self, run: int, window: int | None) -> torch.Tensor | None:
        """What the tokens of a run look at; all layers share it."""
        if (run, window) not in self.masks:
            seen = lookback(self.lengths[run], self.prefixes[run], window, self.positions.device)
            self.masks[run, window] = seen
        return self.masks[run, window]


def lookback(length: int, prefix: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """(1, 1, length, prefix + length), what tokens behind a prefix look at: themselves and those before, `window` in
    all at most. None where plain causal attention says as much."""
    if not prefix and (window is None or window >= length):
        return None
    distance = torch.arange(length, device=device)[:, None] + prefix - torch.arange(prefix + length, device=device)
    return ((distance >= 0) & (distance < (window or math.inf)))[None, None]


@dataclass
class Pairs:
    """TRL's batch of pairs, (2 pairs, width) padded on the right and chosen over rejected, and the row that packs it.
    What the two sequences of a pair begin with is in the row once: the runs are chosen, and the rest of rejected.
    """

    layout: Layout
    width: int

    @classmethod
    def of(cls, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> "Pairs":
        half, width = len(input_ids) // 2, input_ids.shape[1]
        ends = attention_mask.sum(1)
        both = torch.minimum(ends[:half], ends[half:])[:, None] > torch.arange(width, device=input_ids.device)
        shared = ((input_ids[:half] == input_ids[half:]) & both).cumprod(1).sum(1)
        lengths = torch.stack([ends[:half], ends[half:] - shared], 1).flatten().tolist()
        prefixes = torch.stack([torch.zeros_like(shared), shared], 1).flatten().tolist()
        return cls(Layout.of(lengths, input_ids.device, prefixes), width)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """(2 pairs, width, …) as (1, tokens, …)."""
        half = len(padded) // 2
        rows = [row for pair in zip(padded[:half], padded[half:], strict=True) for row in pair]
        runs = zip(rows, self.layout.prefixes, self.layout.lengths, strict=True)
        return torch.cat([row[prefix : prefix + length] for row, prefix, length in runs])[None]

    def spread(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, tokens, …) as (2 pairs, width, …), 0 in the padding."""
        runs = torch.split(packed[0], self.layout.lengths)
        chosen, shared = runs[::2], self.layout.prefixes[1::2]
        rejected = [torch.cat([c[:n], own]) for c, own, n in zip(chosen, runs[1::2], shared, strict=True)]
        rows = pad_sequence([*chosen, *rejected], batch_first=True)
        return pad(rows, (0, 0) * (rows.dim() - 2) + (0, self.width - rows.shape[1]))


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA attention over the runs; without a layout, over what it is given (causal, and padded on the
    right if at all). Query, key and value: (batch, heads, tokens, dim)."""
    window = kwargs.get("sliding_window")
    if layout is None:
        if attention_mask is None:
            attention_mask = lookback(query.shape[2], 0, window, query.device)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    layout.seen = True
    attend = run_by_run if query.device.type in RUN_BY_RUN else all_at_once
    return attend(module, [query, key, value], layout, **kwargs), None


def run_by_run(module: torch.nn.Module, states: list[torch.Tensor], layout: Layout, **kwargs: Any) -> torch.Tensor:
    """A call for every run: nothing is padded, and the queries of a prefix are not computed again."""
    window, outputs, before = kwargs.get("sliding_window"), [], states[1:]
    parts = (torch.split(t, layout.lengths, 2) for t in states)
    for run, (prefix, q, *own) in enumerate(zip(layout.prefixes, *parts, strict=True)):
        if prefix:
            own = [torch.cat([b[:, :, :prefix], o], 2) for b, o in zip(before, own, strict=True)]
        if q.shape[2]:
            outputs.append(sdpa_attention_forward(module, q, *own, layout.mask(run, window), **kwargs)[0])
        before = own
    return torch.cat(outputs, 1)


def all_at_once(module: torch.nn.Module, states: list[torch.Tensor], layout: Layout, **kwargs: Any) -> torch.Tensor:
    """One call over padded sequences, prefixes in front of what goes on from them: plain causal attention, which has
    the fastest kernels, and few launches where runs are many and short."""
    rows, sources = layout.sequences
    padded = (t[0].transpose(0, 1)[rows].transpose(1, 2) for t in states)
    mask = lookback(rows.shape[1], 0, kwargs.get("sliding_window"), rows.device)
    output, _ = sdpa_attention_forward(module, *padded, mask, **kwargs)
    return output.flatten(0, 1).index_select(0, sources)[None]


AttentionInterface.register(ATTENTION, attention)


def attention_of(model: PreTrainedModel) -> str:
    """The name of the attention that the model's layers call."""
    return str(model.config.get_text_config()._attn_implementation)


def only_attends(model: PreTrainedModel) -> bool:
    """Whether all that the model remembers of earlier tokens are their keys and values: no recurrent state."""
    kinds = set(model.config.get_text_config().to_dict().get("layer_types") or [])
    return bool(
        model.is_backend_compatible() and not model._is_stateful and kinds <= {"full_attention", "sliding_attention"}
    )


@torch.no_grad()
def lay_out(model: PreTrainedModel) -> bool:
    """Give the model's layers our attention, if they are attention that takes transformers' interface.

    Returns:
        False, and the model is as before, for a recurrent state, for attention that is not SDPA's (soft-capping), for
        layers that do not hand a layout on, which a forward of one token tells, and for weights that DeepSpeed
        divides: they are whole only inside its engine.
    """
    before = attention_of(model)
    if before == ATTENTION:
        return True
    if not only_attends(model) or before != "sdpa" or is_deepspeed_zero3_enabled():
        return False
    model.set_attn_implementation(ATTENTION)
    layout = Layout.of([1], model.device)
    model.base_model(input_ids=layout.positions, position_ids=layout.positions, layout=layout, use_cache=False)
    if not layout.seen:
        model.set_attn_implementation(before)
    return layout.seen


def pack_pairs(model: PreTrainedModel) -> bool:
    """Have the model read each pair of a TRL batch as prompt, chosen, rejected, and answer in TRL's layout.

    Returns:
        False where its attention cannot be laid out; it then reads padded batches, as before.
    """
    if not lay_out(model):
        return False
    backbone = model.base_model
    padded = backbone.forward

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        pairs = Pairs.of(input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask)
        layout = pairs.layout
        output = padded(input_ids=pairs.pack(input_ids), position_ids=layout.positions, layout=layout, **kwargs)
        output.last_hidden_state = pairs.spread(output.last_hidden_state)
        if logits := output.get("router_logits"):  # of a mixture of experts, a layer each: (tokens, experts)
            output.router_logits = tuple(pairs.spread(layer[None]).flatten(0, 1) for layer in logits)
        return output

    backbone.forward = forward
    return True


def pack_segments(model: PreTrainedModel) -> bool:
    """Have the model attend within the examples of a packed row, without a mask as wide as the row is long.

    Returns:
        False where its attention cannot be laid out; if it only attends, a dense mask then keeps the examples apart.
    """
    if not lay_out(model):
        return False
    backbone = model.base_model
    dense = backbone.forward

    def forward(*args: Any, position_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        layout = Layout.of_segments(position_ids) if position_ids is not None else None
        return dense(*args, position_ids=position_ids, layout=layout, **kwargs)

    backbone.forward = forward
    return True
