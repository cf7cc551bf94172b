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
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

forward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
backward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
softmax_backward = torch.ops.aten._softmax_backward_data
# A run's scores are its tokens times its attended tokens. Up to MOST_KERNEL_SCORES, the kernel's backward in fp32 is
# faster than products in bf16, of PRODUCT_QUERIES each (two cores with AMX, 9 heads of 64; ms per layer of the kernel
# in bf16, in fp32, and of products: 39, 14 and 18 for 16 pairs of 70 + 8 + 8 tokens; 60, 25 and 25 for 21 runs of 130;
# 43, 29 and 26 for 15 of 200; 74, 80 and 56 for 8 of 75 to 939).
MOST_KERNEL_SCORES = 20_000
PRODUCT_QUERIES = 256


class Run(NamedTuple):
    """Slices of the row: the prefix that a run continues, which may be empty, and its own tokens; their lengths."""

    prefix: slice
    own: slice
    continued: int
    length: int

    @property
    def attended(self) -> int:
        return self.continued + self.length

    def pick(self, states: Tensor) -> Tensor:
        """Return the states that the run attends to: those of its prefix, which is earlier in the row, and its own."""
        own = states[:, :, self.own]
        if self.continued:
            return torch.cat([states[:, :, self.prefix], own], 2)
        return own

    def add(self, whole: Tensor, part: Tensor) -> None:
        """Add gradients of what was picked to those of the row. (+= would also copy a slice to itself.)"""
        if self.continued:
            whole[:, :, self.prefix].add_(part[:, :, : self.continued])
        whole[:, :, self.own].add_(part[:, :, self.continued :])


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
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict, init=False)

    @classmethod
    def from_lengths(
        cls,
        lengths: list[int],
        device: torch.device,
        prefixes: Sequence[int] = (),
        continued: Sequence[int] = (),
    ) -> "RunLayout":
        """Return the layout of runs with these lengths. By default, each is a sequence or continues the one before."""
        before = [0, *range(len(lengths) - 1)]
        return cls(lengths, [*prefixes] or [0] * len(lengths), [*continued] or before, device)

    @classmethod
    def from_positions(cls, position_ids: Tensor) -> "RunLayout":
        """Return the layout of a packed row from its positions, (1, tokens), which restart at 0 with every example."""
        starts = (position_ids[0] == 0).nonzero()[:, 0].tolist()
        lengths = np.diff(starts, append=position_ids.shape[1]).tolist()
        return cls.from_lengths(lengths, position_ids.device)

    def on_device(self, numbers: NDArray[Any]) -> Tensor:
        return send_tensor(torch.from_numpy(numbers), self.device)

    @cached_property
    def positions(self) -> Tensor:
        """(1, tokens), every token's position in its sequence."""
        return self.on_device(join_ranges(self.prefixes, self.lengths))[None]

    @cached_property
    def runs(self) -> list[Run]:
        """The runs with own tokens."""
        starts = self.starts.tolist()
        runs = list[Run]()
        for start, length, whole, prefix in zip(
            starts, self.lengths, self.continued, self.prefixes, strict=True
        ):
            if length:
                begin = starts[whole]
                own = slice(start, start + length)
                runs.append(Run(slice(begin, begin + prefix), own, prefix, length))
        return runs

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(runs,), the place in the row of every run's first own token."""
        return np.cumsum(self.lengths) - np.array(self.lengths)

    @cached_property
    def totals(self) -> NDArray[np.int64]:
        """(runs,), the number of tokens that each run attends to: its prefix and its own."""
        return np.add(self.prefixes, self.lengths)

    @cached_property
    def attended(self) -> Tensor:
        """(attended tokens,), the places in the row of every run's prefix and own tokens, run after run."""
        starts = np.stack([self.starts[self.continued], self.starts], 1)
        lengths = np.stack([self.prefixes, self.lengths], 1)
        return self.on_device(join_ranges(starts.ravel(), lengths.ravel()))

    @cached_property
    def boundaries(self) -> tuple[Tensor, Tensor]:
        """(runs + 1,) each, in int32: where the runs begin and end in the row, and in `attended`."""
        own = np.cumsum([0, *self.lengths], dtype=np.int32)
        attended = np.cumsum([0, *self.totals], dtype=np.int32)
        return self.on_device(own), self.on_device(attended)

    @cached_property
    def sequences(self) -> tuple[Tensor, Tensor]:
        """Indices from a row to padded sequences and back: (runs, width), the places of each run's prefix and own
        tokens in the row, then its first token; and (tokens,), every token's place in the flattened first tensor. (The
        gradients of padding are added up at one token per run: at the same one, all additions would wait in line.)"""
        width = int(self.totals.max())
        firsts = np.arange(len(self.totals)) * width
        places = self.on_device(np.repeat(np.minimum(self.starts, sum(self.lengths) - 1), width))
        places[self.on_device(join_ranges(firsts, self.totals))] = self.attended
        own = self.on_device(join_ranges(firsts + self.prefixes, self.lengths))
        return places.view(-1, width), own

    def mask(self, run: Run, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return a run's mask, (own, attended), 0 for visible tokens, else -inf, cut from that of all runs."""
        if (window, dtype) not in self.masks:
            longest = max(each.attended for each in self.runs)
            visible = visible_tokens(longest, window, self.device)
            mask = torch.zeros(visible.shape, dtype=dtype)
            self.masks[window, dtype] = mask.masked_fill_(~visible, -math.inf)
        return self.masks[window, dtype][run.continued : run.attended, : run.attended]

    def kernel_mask(self, run: Run, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Return `mask` for a kernel; None if plain causal attention is right: without prefix, and within the window."""
        within = window is None or window >= run.attended
        if within and not run.continued:
            return None
        return self.mask(run, window, dtype)[None, None]


def join_ranges(
    starts: list[int] | NDArray[Any], lengths: list[int] | NDArray[Any]
) -> NDArray[np.int64]:
    """Return the numbers start, …, start + length - 1 of every range, one range after another."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) + np.repeat(np.asarray(starts) + lengths - ends, lengths)


def send_tensor(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to the device. To an accelerator the copy starts from pinned memory, as otherwise the
    CPU would wait for all earlier work of the device."""
    if device.type in ("cpu", "meta"):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def autocast_dtype(states: Tensor) -> torch.dtype:
    """Return autocast's precision if that is on for the tensor's device, else the tensor's own."""
    device = states.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return states.dtype


def visible_tokens(length: int, window: int | None, device: torch.device) -> Tensor:
    """Return which of `length` tokens each one sees, (length, length): itself and earlier ones, at most `window`."""
    places = torch.arange(length, device=device)
    distance = places[:, None] - places
    return (distance >= 0) & (distance < (window or math.inf))


def causal_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return the attention mask, (1, 1, length, length), or None if plain causal attention needs none."""
    if window is None or window >= length:
        return None
    return visible_tokens(length, window, device)[None, None]


class RunAttention(torch.autograd.Function):
    """Causal attention within every run, and to the prefix that it continues."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,  # (1, heads, tokens, dim)
        key: Tensor,  # (1, key heads, tokens, dim)
        value: Tensor,
        layout: RunLayout,
        scale: float | None,
        window: int | None,
    ) -> Tensor:
        """Return (1, tokens, heads, dim), in autocast's precision if that is on."""
        ctx.dtypes = query.dtype, key.dtype, value.dtype
        dtype = autocast_dtype(query)
        query, key, value = (t.to(dtype) for t in (query, key, value))
        output = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        log_sums = []
        for run in layout.runs:
            mask = layout.kernel_mask(run, window, dtype)
            run_output, log_sum = forward_kernel(
                query[:, :, run.own],
                run.pick(key),
                run.pick(value),
                0.0,
                mask is None,
                attn_mask=mask,
                scale=scale,
            )
            output[:, run.own] = run_output.transpose(1, 2)
            log_sums.append(log_sum)
        ctx.layout = layout
        ctx.scale = scale
        ctx.window = window
        ctx.save_for_backward(query, key, value, output, *log_sums)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *log_sums = ctx.saved_tensors
        layout = ctx.layout
        by_query, by_key, by_value = (
            torch.zeros_like(state, dtype=dtype)
            for state, dtype in zip((query, key, value), ctx.dtypes, strict=True)
        )
        rounded = [grad.transpose(1, 2).to(query.dtype), query, key, value, output.transpose(1, 2)]
        kernel_dtype = torch.promote_types(query.dtype, torch.float32)
        exact = [state.to(kernel_dtype) for state in rounded]
        for run, log_sum in zip(layout.runs, log_sums, strict=True):
            scores = run.length * run.attended
            by_kernel = query.dtype is kernel_dtype or scores <= MOST_KERNEL_SCORES
            g, q, k, v, o = exact if by_kernel else rounded
            states = g[:, :, run.own], q[:, :, run.own], run.pick(k), run.pick(v)
            if by_kernel:
                mask = layout.kernel_mask(run, ctx.window, kernel_dtype)
                settings = {"attn_mask": mask, "scale": ctx.scale}
                run_grads = backward_kernel(
                    *states, o[:, :, run.own], log_sum, 0.0, mask is None, **settings
                )
            else:
                mask = layout.mask(run, ctx.window, query.dtype)
                run_grads = by_products(*states, mask, ctx.scale or query.shape[-1] ** -0.5)
            by_query[:, :, run.own] = run_grads[0]
            run.add(by_key, run_grads[1])
            run.add(by_value, run_grads[2])
        return by_query, by_key, by_value, None, None, None


def by_products(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
) -> tuple[Tensor, ...]:
    """Return a run's gradients in fp32, from matrix products: of query, (1, heads, own, dim), and of key and value,
    (1, key heads, attended, dim). Products are summed in fp32; scores and weights are rounded like the states."""
    heads, own, dim = query.shape[1:]
    key_heads, attended = key.shape[1:3]
    # every product would copy them otherwise
    grad = grad[0].contiguous()
    query = query[0].contiguous()
    keys = key[0].repeat_interleave(heads // key_heads, 0)
    values = value[0].repeat_interleave(heads // key_heads, 0)
    by_query = query.new_empty(heads, own, dim, dtype=torch.float32)
    by_key, by_value = query.new_zeros(2, heads, attended, dim, dtype=torch.float32)
    for start in range(0, own, PRODUCT_QUERIES):
        rows = slice(start, min(start + PRODUCT_QUERIES, own))
        end = attended - own + rows.stop  # later tokens are invisible to these queries
        q = query[:, rows]
        g = grad[:, rows]
        k = keys[:, :end]
        v = values[:, :end]
        weights = torch.baddbmm(mask[rows, :end], q, k.transpose(1, 2), alpha=scale).softmax(-1)
        by_scores = softmax_backward(torch.bmm(g, v.transpose(1, 2)), weights, -1, weights.dtype)
        by_query[:, rows] = torch.bmm(by_scores, k)
        by_key[:, :end].add_(torch.bmm(by_scores.transpose(1, 2), q))
        by_value[:, :end].add_(torch.bmm(weights.transpose(1, 2), g))
    by_group = (1, key_heads, -1, attended, dim)  # query heads share a key head
    return (
        by_query.mul_(scale)[None],
        by_key.mul_(scale).view(by_group).sum(2),
        by_value.view(by_group).sum(2),
    )
