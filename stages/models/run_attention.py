"""Attention over the runs of a packed row: the layout that says which tokens belong together, and a CPU's kernels.

A run is a whole sequence, or what a sequence adds to the beginning of another. On a CPU every run is attended to by
the kernel that PyTorch's SDPA takes there. Called through SDPA, every run is cut out, joined with its prefix and put
back by autograd, whose backward fills and adds tensors as long as the row for every one of these views. Here a run's
own gradients are added in place. In bf16, those of a long run come from plain matrix products, which take three
quarters of the time of the kernel's backward.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

forward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
backward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
softmax_backward = torch.ops.aten._softmax_backward_data
# Scores of a run, its tokens times those it attends to, up to which the kernel's backward in fp32 is faster than
# products in bf16, and queries of a product (two cores with AMX, 9 heads of 64; ms of a layer for the kernel in bf16,
# in fp32, and products: 39, 14 and 18 for 16 pairs of 70 + 8 + 8 tokens; 60, 25 and 25 for 21 runs of 130; 43, 29 and
# 26 for 15 of 200; 74, 80 and 56 for 8 of 75 to 939).
MOST_KERNEL_SCORES, PRODUCT_QUERIES = 20_000, 256


@dataclass
class RunLayout:
    """The runs of a packed row.

    lengths: tokens of every run, in order.
    prefixes: how many tokens, from the beginning of another run, a run continues; 0 for a whole sequence.
    positions: (1, tokens), every token's position in its sequence.
    continued: which run that is, a whole sequence; where there is no list, the one before.
    """

    lengths: list[int]
    prefixes: list[int]
    positions: torch.Tensor
    continued: list[int] | None = None
    used: bool = False  # a layer's attention was given this layout
    masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def from_lengths(
        cls,
        lengths: list[int],
        device: torch.device,
        prefixes: list[int] | None = None,
        continued: list[int] | None = None,
    ) -> "RunLayout":
        """Of runs with these lengths: whole sequences, unless `prefixes` says what they continue."""
        prefixes = prefixes or [0] * len(lengths)
        positions = [torch.arange(p, p + n) for n, p in zip(lengths, prefixes, strict=True)]
        return cls(lengths, prefixes, torch.cat(positions)[None].to(device), continued)

    @classmethod
    def from_positions(cls, position_ids: torch.Tensor) -> "RunLayout":
        """From the positions of a packed row, (1, tokens), which start again at 0 with every example."""
        starts = [*(position_ids[0] == 0).nonzero()[:, 0].tolist(), position_ids.shape[1]]
        lengths = [b - a for a, b in pairwise(starts)]
        return cls(lengths, [0] * len(lengths), position_ids)

    @cached_property
    def slices(self) -> list[tuple[slice, slice]]:
        """For every run, the places in the row of what it continues, and its own."""
        starts = [0, *accumulate(self.lengths)]
        continued = self.continued or [max(0, run - 1) for run in range(len(self.lengths))]
        prefix_slices = [slice(starts[run], starts[run] + n) for run, n in zip(continued, self.prefixes, strict=True)]
        return [*zip(prefix_slices, (slice(start, end) for start, end in pairwise(starts)), strict=True)]

    @cached_property
    def sequences(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices that make padded sequences of the row, and the row of them again. (runs, width): for every run the
        places in the row of its prefix and its own tokens, padded on the right with 0. (tokens,): for every token of
        the row its place in the first, flattened."""
        rows = [torch.cat([torch.arange(s.start, s.stop) for s in both]) for both in self.slices]
        width = max(map(len, rows))
        own_places = [torch.arange(prefix, len(row)) for prefix, row in zip(self.prefixes, rows, strict=True)]
        sources = torch.cat([i * width + places for i, places in enumerate(own_places)])
        return pad_sequence(rows, batch_first=True).to(self.positions.device), sources.to(self.positions.device)

    @cached_property
    def attended_places(self) -> list[tuple[list[slice], slice]]:
        """For every run that has tokens of its own, the places in the row of all that it attends to, and its own."""
        runs = [(prefix, own) for prefix, own in self.slices if own.stop > own.start]
        return [([prefix, own] if prefix.stop > prefix.start else [own], own) for prefix, own in runs]

    def is_causal(self, run: int, window: int | None) -> bool:
        """Whether the tokens of one of `places` see all that it attends to, up to themselves."""
        return len(self.attended_places[run][0]) == 1 and (window is None or window >= self.lengths_attended[run])

    def mask(self, run: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """What the tokens of one of `places` see of what it attends to, (own, attended): 0, or -inf. All runs and
        layers share what this is a part of."""
        attended = self.lengths_attended
        if (window, dtype) not in self.masks:
            visible = visible_tokens(max(attended), window, self.positions.device)
            self.masks[window, dtype] = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -math.inf)
        own = self.attended_places[run][1]
        return self.masks[window, dtype][attended[run] - (own.stop - own.start) : attended[run], : attended[run]]

    @cached_property
    def lengths_attended(self) -> list[int]:
        """How many tokens each of `places` attends to."""
        return [sum(place.stop - place.start for place in places) for places, _ in self.attended_places]


def visible_tokens(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """What each of `length` tokens sees, (length, length): itself and those before it, `window` in all at most."""
    places = torch.arange(length, device=device)
    distance = places[:, None] - places
    return (distance >= 0) & (distance < (window or math.inf))


def causal_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """The attention mask, (1, 1, length, length), or None where causal attention needs none."""
    return None if window is None or window >= length else visible_tokens(length, window, device)[None, None]


class RunAttention(torch.autograd.Function):
    """Causal attention within every run, and to the prefix that it continues."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,  # (1, heads, tokens, dim)
        key: torch.Tensor,  # (1, key heads, tokens, dim)
        value: torch.Tensor,
        layout: RunLayout,
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """(1, tokens, heads, dim), in the precision of autocast where that is on."""
        ctx.dtypes = query.dtype, key.dtype, value.dtype
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        query, key, value = (t.to(dtype) for t in (query, key, value))
        output, log_sums = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format), []
        for run, (places, own) in enumerate(layout.attended_places):
            causal = layout.is_causal(run, window)
            mask = None if causal else layout.mask(run, window, dtype)[None, None]
            run_output, log_sum = forward_kernel(
                query[:, :, own], pick(key, places), pick(value, places), 0.0, causal, attn_mask=mask, scale=scale
            )
            output[:, own] = run_output.transpose(1, 2)
            log_sums.append(log_sum)
        ctx.layout, ctx.scale, ctx.window = layout, scale, window
        ctx.save_for_backward(query, key, value, output, *log_sums)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, *log_sums = ctx.saved_tensors
        grads = [torch.zeros_like(t, dtype=d) for t, d in zip((query, key, value), ctx.dtypes, strict=True)]
        layout, window, dtype = ctx.layout, ctx.window, torch.promote_types(query.dtype, torch.float32)
        rounded = [t.to(query.dtype) for t in (grad.transpose(1, 2), query, key, value, output.transpose(1, 2))]
        exact = [t.to(dtype) for t in rounded]
        for run, (places, own) in enumerate(layout.places):
            scores = (own.stop - own.start) * layout.lengths_attended[run]
            by_kernel = dtype is query.dtype or scores <= MOST_KERNEL_SCORES
            g, q, k, v, o = exact if by_kernel else rounded
            states = g[:, :, own], q[:, :, own], pick(k, places), pick(v, places)
            if by_kernel:
                causal = layout.causal(run, window)
                mask = None if causal else layout.mask(run, window, dtype)[None, None]
                options = {"attn_mask": mask, "scale": ctx.scale}
                run_grads = backward_kernel(*states, o[:, :, own], log_sums[run], 0.0, causal, **options)
            else:
                scale = ctx.scale or query.shape[-1] ** -0.5
                run_grads = by_products(*states, layout.mask(run, window, query.dtype), scale)
            grads[0][:, :, own] = run_grads[0]
            for whole, part in zip(grads[1:], run_grads[1:], strict=True):
                start = 0
                for place in places:
                    length = place.stop - place.start
                    whole[:, :, place].add_(part[:, :, start : start + length])  # += would also copy it to itself
                    start += length
        return *grads, None, None, None


def by_products(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> tuple[torch.Tensor, ...]:
    """The gradients of a run's query, (1, heads, own, dim), key and value, (1, key heads, attended, dim), in fp32.
    Sums of products are taken in fp32; scores and weights are rounded as the states are."""
    heads, own, dim = query.shape[1:]
    grad, query = grad[0].contiguous(), query[0].contiguous()  # products would copy them, several times over
    keys, values = (t[0].repeat_interleave(heads // t.shape[1], 0) for t in (key, value))
    attended = keys.shape[1]
    by_query = query.new_empty(heads, own, dim, dtype=torch.float32)
    by_key, by_value = query.new_zeros(2, heads, attended, dim, dtype=torch.float32)
    for start in range(0, own, PRODUCT_QUERIES):
        rows = slice(start, min(start + PRODUCT_QUERIES, own))
        end = attended - own + rows.stop  # nothing sees further
        q, g, k, v = query[:, rows], grad[:, rows], keys[:, :end], values[:, :end]
        weights = torch.baddbmm(mask[rows, :end], q, k.transpose(1, 2), alpha=scale).softmax(-1)
        by_scores = softmax_backward(torch.bmm(g, v.transpose(1, 2)), weights, -1, weights.dtype)
        by_query[:, rows] = torch.bmm(by_scores, k)
        by_key[:, :end].add_(torch.bmm(by_scores.transpose(1, 2), q))
        by_value[:, :end].add_(torch.bmm(weights.transpose(1, 2), g))
    by_query, by_key = by_query.mul_(scale), by_key.mul_(scale)
    return by_query[None], *(t.view(*key.shape[:2], -1, attended, dim).sum(2) for t in (by_key, by_value))


def pick(states: torch.Tensor, places: list[slice]) -> torch.Tensor:
    """What a run attends to: its prefix, which stands before the run in the row, and its own tokens."""
    parts = [states[:, :, place] for place in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
