"""Attention over the runs of a packed row: the layout of the runs, and their computation on a CPU.

A run is a whole sequence, or the tokens that a sequence adds to the beginning of another one. On a CPU, every run is
computed by the kernel behind PyTorch's SDPA. Through SDPA itself, autograd would cut each run out, join it with its
prefix and put it back; its backward fills and adds a tensor as long as the row for each of these views. Here a run's
gradients are added in place. In bf16, plain matrix products compute the gradients of a long run: they take three
quarters of the time of the kernel's backward."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

forward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
backward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
softmax_backward = torch.ops.aten._softmax_backward_data
# A run's scores are its tokens times its attended tokens. Up to MOST_KERNEL_SCORES, the kernel's backward in fp32 is
# faster than products in bf16, of PRODUCT_QUERIES each (two cores with AMX, 9 heads of 64; ms per layer of the kernel
# in bf16, in fp32, and of products: 39, 14 and 18 for 16 pairs of 70 + 8 + 8 tokens; 60, 25 and 25 for 21 runs of 130;
# 43, 29 and 26 for 15 of 200; 74, 80 and 56 for 8 of 75 to 939).
MOST_KERNEL_SCORES, PRODUCT_QUERIES = 20_000, 256


@dataclass
class RunLayout:
    """The runs of a packed row.

    lengths: tokens of every run, in order.
    prefixes: tokens at the beginning of another run that a run continues; 0 for a whole sequence.
    continued: for every run, the index of the whole sequence that it continues.
    device: where the tensors below are needed; they are computed on the CPU at their first use.
    used: True once a layer's attention received this layout.
    windowed: True once a layer's attention also received a window."""

    lengths: list[int]
    prefixes: list[int]
    continued: list[int]
    device: torch.device
    used: bool = field(default=False, init=False)
    windowed: bool = field(default=False, init=False)
    masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = field(
        default_factory=dict, init=False
    )

    @classmethod
    def from_lengths(
        cls,
        lengths: list[int],
        device: torch.device,
        prefixes: Sequence[int] = (),
        continued: Sequence[int] = (),
    ) -> "RunLayout":
        """Return the layout of runs with these lengths. By default, each is a sequence or continues the one before."""
        continues = [*continued] or [max(0, run - 1) for run in range(len(lengths))]
        return cls(lengths, [*prefixes] or [0] * len(lengths), continues, device)

    @classmethod
    def from_positions(cls, position_ids: torch.Tensor) -> "RunLayout":
        """Return the layout of a packed row from its positions, (1, tokens), which restart at 0 with every example."""
        starts = [*(position_ids[0] == 0).nonzero()[:, 0].tolist(), position_ids.shape[1]]
        return cls.from_lengths([b - a for a, b in pairwise(starts)], position_ids.device)

    def on_device(self, numbers: NDArray[Any]) -> torch.Tensor:
        return send_tensor(torch.from_numpy(numbers), self.device)

    @cached_property
    def positions(self) -> torch.Tensor:
        """(1, tokens), every token's position in its sequence."""
        return self.on_device(join_ranges(self.prefixes, self.lengths))[None]

    @cached_property
    def slices(self) -> list[tuple[slice, slice]]:
        """For every run, the slice of the row with its prefix, and the slice with its own tokens."""
        starts = self.starts[self.continued].tolist(), self.starts.tolist()
        runs = zip(*starts, self.prefixes, self.lengths, strict=True)
        return [
            (slice(first, first + prefix), slice(own, own + n)) for first, own, prefix, n in runs
        ]

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(runs,), the place in the row of every run's first own token."""
        return np.cumsum(self.lengths) - np.array(self.lengths)

    @cached_property
    def totals(self) -> NDArray[np.int64]:
        """(runs,), the number of tokens that each run attends to: its prefix and its own."""
        return np.add(self.prefixes, self.lengths)

    @cached_property
    def attended(self) -> torch.Tensor:
        """(attended tokens,), the places in the row of every run's prefix and own tokens, run after run."""
        starts = np.stack([self.starts[self.continued], self.starts], 1)
        return self.on_device(
            join_ranges(starts.ravel(), np.stack([self.prefixes, self.lengths], 1).ravel())
        )

    @cached_property
    def boundaries(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(runs + 1,) each, in int32: where the runs begin and end in the row, and in `attended`."""
        own, attended = (
            np.cumsum([0, *counts], dtype=np.int32) for counts in (self.lengths, self.totals)
        )
        return self.on_device(own), self.on_device(attended)

    @cached_property
    def sequences(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices from a row to padded sequences and back: (runs, width), the places of each run's prefix and own
        tokens in the row, then its first token; and (tokens,), every token's place in the flattened first tensor. (The
        gradients of padding are added up at one token per run: at the same one, all additions would wait in line.)"""
        width = int(self.totals.max())
        firsts = np.arange(len(self.totals)) * width
        places = self.on_device(np.repeat(np.minimum(self.starts, sum(self.lengths) - 1), width))
        places[self.on_device(join_ranges(firsts, self.totals))] = self.attended
        return places.view(-1, width), self.on_device(
            join_ranges(firsts + self.prefixes, self.lengths)
        )

    @cached_property
    def attended_places(self) -> list[tuple[list[slice], slice]]:
        """For every run with own tokens: the slices of the row that it attends to, and the slice of its own tokens."""
        runs = [(prefix, own) for prefix, own in self.slices if own.stop > own.start]
        return [
            ([prefix, own] if prefix.stop > prefix.start else [own], own) for prefix, own in runs
        ]

    def is_causal(self, run: int, window: int | None) -> bool:
        """Return True if plain causal attention is right for a run: without prefix, and within the window."""
        return len(self.attended_places[run][0]) == 1 and (
            window is None or window >= self.lengths_attended[run]
        )

    def mask(self, run: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Return a run's mask, (own, attended), 0 for visible tokens, else -inf, cut from that of all runs."""
        attended = self.lengths_attended
        if (window, dtype) not in self.masks:
            visible = visible_tokens(max(attended), window, self.device)
            self.masks[window, dtype] = torch.zeros(visible.shape, dtype=dtype).masked_fill_(
                ~visible, -math.inf
            )
        own = self.attended_places[run][1]
        return self.masks[window, dtype][
            attended[run] - (own.stop - own.start) : attended[run], : attended[run]
        ]

    @cached_property
    def lengths_attended(self) -> list[int]:
        """The number of tokens that each of `attended_places` attends to."""
        return [
            sum(place.stop - place.start for place in places) for places, _ in self.attended_places
        ]


def join_ranges(
    starts: list[int] | NDArray[Any], lengths: list[int] | NDArray[Any]
) -> NDArray[np.int64]:
    """Return the numbers start, …, start + length - 1 of every range, one range after another."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) + np.repeat(np.asarray(starts) + lengths - ends, lengths)


def send_tensor(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the CPU to the device. To an accelerator the copy starts from pinned memory, as otherwise the
    CPU would wait for all earlier work of the device."""
    return (
        tensor.to(device)
        if device.type in ("cpu", "meta")
        else tensor.pin_memory().to(device, non_blocking=True)
    )


def autocast_dtype(states: torch.Tensor) -> torch.dtype:
    """Return autocast's precision if that is on for the tensor's device, else the tensor's own."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def visible_tokens(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which of `length` tokens each one sees, (length, length): itself and earlier ones, at most `window`."""
    places = torch.arange(length, device=device)
    distance = places[:, None] - places
    return (distance >= 0) & (distance < (window or math.inf))


def causal_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return the attention mask, (1, 1, length, length), or None if plain causal attention needs none."""
    return (
        None
        if window is None or window >= length
        else visible_tokens(length, window, device)[None, None]
    )


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
        """Return (1, tokens, heads, dim), in autocast's precision if that is on."""
        ctx.dtypes = query.dtype, key.dtype, value.dtype
        dtype = autocast_dtype(query)
        query, key, value = (t.to(dtype) for t in (query, key, value))
        output = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        log_sums = []
        for run, (places, own) in enumerate(layout.attended_places):
            causal = layout.is_causal(run, window)
            mask = None if causal else layout.mask(run, window, dtype)[None, None]
            run_output, log_sum = forward_kernel(
                query[:, :, own],
                pick(key, places),
                pick(value, places),
                0.0,
                causal,
                attn_mask=mask,
                scale=scale,
            )
            output[:, own] = run_output.transpose(1, 2)
            log_sums.append(log_sum)
        ctx.layout, ctx.scale, ctx.window = layout, scale, window
        ctx.save_for_backward(query, key, value, output, *log_sums)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, *log_sums = ctx.saved_tensors
        grads = [
            torch.zeros_like(t, dtype=d)
            for t, d in zip((query, key, value), ctx.dtypes, strict=True)
        ]
        layout = ctx.layout
        window = ctx.window
        dtype = torch.promote_types(query.dtype, torch.float32)
        rounded = [
            t.to(query.dtype)
            for t in (grad.transpose(1, 2), query, key, value, output.transpose(1, 2))
        ]
        exact = [t.to(dtype) for t in rounded]
        for run, (places, own) in enumerate(layout.attended_places):
            scores = (own.stop - own.start) * layout.lengths_attended[run]
            by_kernel = dtype is query.dtype or scores <= MOST_KERNEL_SCORES
            g, q, k, v, o = exact if by_kernel else rounded
            states = g[:, :, own], q[:, :, own], pick(k, places), pick(v, places)
            if by_kernel:
                causal = layout.is_causal(run, window)
                mask = None if causal else layout.mask(run, window, dtype)[None, None]
                options = {"attn_mask": mask, "scale": ctx.scale}
                run_grads = backward_kernel(
                    *states, o[:, :, own], log_sums[run], 0.0, causal, **options
                )
            else:
                scale = ctx.scale or query.shape[-1] ** -0.5
                run_grads = by_products(*states, layout.mask(run, window, query.dtype), scale)
            grads[0][:, :, own] = run_grads[0]
            for whole, part in zip(grads[1:], run_grads[1:], strict=True):
                start = 0
                for place in places:
                    length = place.stop - place.start
                    # += would also copy it to itself
                    whole[:, :, place].add_(part[:, :, start : start + length])
                    start += length
        return *grads, None, None, None


def by_products(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """Return a run's gradients in fp32, from matrix products: of query, (1, heads, own, dim), and of key and value,
    (1, key heads, attended, dim). Products are summed in fp32; scores and weights are rounded like the states."""
    heads, own, dim = query.shape[1:]
    # every product would copy them otherwise
    grad, query = grad[0].contiguous(), query[0].contiguous()
    keys, values = (t[0].repeat_interleave(heads // t.shape[1], 0) for t in (key, value))
    attended = keys.shape[1]
    by_query = query.new_empty(heads, own, dim, dtype=torch.float32)
    by_key, by_value = query.new_zeros(2, heads, attended, dim, dtype=torch.float32)
    for start in range(0, own, PRODUCT_QUERIES):
        rows = slice(start, min(start + PRODUCT_QUERIES, own))
        end = attended - own + rows.stop  # later tokens are invisible to these queries
        q, g, k, v = query[:, rows], grad[:, rows], keys[:, :end], values[:, :end]
        weights = torch.baddbmm(mask[rows, :end], q, k.transpose(1, 2), alpha=scale).softmax(-1)
        by_scores = softmax_backward(torch.bmm(g, v.transpose(1, 2)), weights, -1, weights.dtype)
        by_query[:, rows] = torch.bmm(by_scores, k)
        by_key[:, :end].add_(torch.bmm(by_scores.transpose(1, 2), q))
        by_value[:, :end].add_(torch.bmm(weights.transpose(1, 2), g))
    by_query, by_key = by_query.mul_(scale), by_key.mul_(scale)
    return by_query[None], *(
        t.view(*key.shape[:2], -1, attended, dim).sum(2) for t in (by_key, by_value)
    )


def pick(states: torch.Tensor, places: list[slice]) -> torch.Tensor:
    """Return the states that a run attends to: those of its prefix, which is earlier in the row, and its own."""
    parts = [states[:, :, place] for place in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
