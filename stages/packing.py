"""Forward passes that spend nothing on padding, and nothing on reading the same prefix twice.

All tokens of a batch stand in one row, so that every linear layer sees each of them once. Only attention needs to know
what belongs together: there, tokens are laid out as the sequences they make, (sequences, width), attend causally, and
go back to their places. A prompt shared by a chosen and a rejected completion is part of both sequences and of one run
through the layers.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION = "plumbline_packed"


@dataclass
class Layout:
    """How the packed row and its sequences correspond.

    rows: (sequences, width), the packed place of every token of every sequence; padding, on the right, is place 0.
    sources: (tokens,), for every packed token, where in the flattened `rows` its own sequence has it.
    positions: (1, tokens), every packed token's position in its sequence.
    """

    rows: torch.Tensor
    sources: torch.Tensor
    positions: torch.Tensor
    seen: bool = False  # by a layer's attention

    @classmethod
    def of(cls, sequences: list[list[int]], firsts: list[int], width: int, device: torch.device) -> "Layout":
        """From the packed places of every sequence's tokens, and from which token on they are its own."""
        rows = torch.zeros(len(sequences), width, dtype=torch.long)
        sources: dict[int, int] = {}
        for i, (places, first) in enumerate(zip(sequences, firsts, strict=True)):
            rows[i, : len(places)] = torch.tensor(places)
            sources |= {place: i * width + t for t, place in enumerate(places) if t >= first}
        flat = torch.tensor([sources[place] for place in range(len(sources))])
        return cls(rows.to(device), flat.to(device), (flat % width)[None].to(device))

    @classmethod
    def of_pairs(cls, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> "Layout":
        """From TRL's batch of pairs, (2 pairs, width) padded on the right, chosen over rejected: what the two rows of
        a pair begin with is packed once."""
        half, width = len(input_ids) // 2, input_ids.shape[1]
        lengths = attention_mask.sum(1)
        both = torch.minimum(lengths[:half], lengths[half:])[:, None] > torch.arange(width, device=input_ids.device)
        shared = ((input_ids[:half] == input_ids[half:]) & both).cumprod(1).sum(1).tolist()
        chosen, rejected, end = [], [], 0
        for length, other, prefix in zip(*lengths.view(2, half).tolist(), shared, strict=True):
            chosen.append([*range(end, end + length)])
            rejected.append([*range(end, end + prefix), *range(end + length, end + length + other - prefix)])
            end += length + other - prefix
        return cls.of([*chosen, *rejected], [0] * half + shared, width, input_ids.device)

    @classmethod
    def of_segments(cls, position_ids: torch.Tensor) -> "Layout":
        """From a packed row, (1, tokens), whose positions start again at 0 with every example."""
        starts = [*(position_ids[0] == 0).nonzero()[:, 0].tolist(), position_ids.shape[1]]
        return cls.of_lengths([b - a for a, b in pairwise(starts)], position_ids.device)

    @classmethod
    def of_lengths(cls, lengths: list[int], device: torch.device) -> "Layout":
        """Of sequences that stand one behind the other."""
        ends = [*accumulate(lengths)]
        sequences = [[*range(end - length, end)] for length, end in zip(lengths, ends, strict=True)]
        return cls.of(sequences, [0] * len(lengths), max(lengths), device)

    def spread(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, tokens, …) as (sequences, width, …)."""
        return packed[0].index_select(0, self.rows.flatten()).view(*self.rows.shape, *packed.shape[2:])

    def pack(self, spread: torch.Tensor) -> torch.Tensor:
        """(sequences, width, …) as (1, tokens, …)."""
        return spread.flatten(0, 1).index_select(0, self.sources)[None]


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA attention over sequences laid out; without a layout, what it is given (causal, and padded on
    the right if at all). Query, key and value: (batch, heads, tokens, dim)."""
    if layout is not None:
        layout.seen = True
        query, key, value = (layout.spread(t.transpose(1, 2)).transpose(1, 2) for t in (query, key, value))
    window, width = kwargs.get("sliding_window"), query.shape[2]
    if attention_mask is None and window is not None and window < width:
        place = torch.arange(width, device=query.device)
        distance = place[:, None] - place
        attention_mask = ((distance >= 0) & (distance < window))[None, None]
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return (output if layout is None else layout.pack(output)), None


AttentionInterface.register(ATTENTION, attention)


def only_attends(model: PreTrainedModel) -> bool:
    """Whether all that the model remembers of earlier tokens are their keys and values: no recurrent state."""
    kinds = set(model.config.get_text_config().to_dict().get("layer_types") or [])
    return bool(
        model._supports_attention_backend
        and not model._is_stateful
        and kinds <= {"full_attention", "sliding_attention"}
    )


@torch.no_grad()
def lay_out(model: PreTrainedModel) -> bool:
    """Give the model's layers our attention, if they are attention that takes transformers' interface.

    Returns:
        False, and the model is as before, for a recurrent state, for attention that is not SDPA's (soft-capping), for
        layers that do not hand a layout on, which a forward of one token tells, and for weights that DeepSpeed has
        divided: they are whole only inside its engine.
    """
    before = model.config.get_text_config()._attn_implementation
    if before == ATTENTION:
        return True
    if not only_attends(model) or before != "sdpa" or hasattr(next(model.parameters()), "ds_id"):
        return False
    model.set_attn_implementation(ATTENTION)
    layout = Layout.of_lengths([1], model.device)
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
        layout = Layout.of_pairs(input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask)
        output = padded(input_ids=layout.pack(input_ids), position_ids=layout.positions, layout=layout, **kwargs)
        output.last_hidden_state = layout.spread(output.last_hidden_state)
        if logits := output.get("router_logits"):  # of a mixture of experts, a layer each: (tokens, experts)
            output.router_logits = tuple(layout.spread(layer[None]).flatten(0, 1) for layer in logits)
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
