"""Attention over the runs of a packed row on a CPU, each by the kernel that PyTorch's SDPA takes there.

Called through SDPA, every run is cut out, joined with its prefix and put back by autograd, whose backward fills and
adds tensors as long as the row for every one of these views. Here the kernel's own gradients are added in place.
"""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from stages.models.packing import Layout

forward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
backward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# Tokens that a run attends to, up to which the kernel's backward is faster in fp32 than in bf16 (two cores with AMX, 9
# heads of 64: 0.1 against 0.6 ms for 30 tokens, 1.5 against 2.4 ms for 200, 7.9 against 7.2 ms for 500).
EXACT = 400


class RunAttention(torch.autograd.Function):
    """Causal attention within every run, and to the prefix that it continues."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,  # (1, heads, tokens, dim)
        key: torch.Tensor,  # (1, key heads, tokens, dim)
        value: torch.Tensor,
        layout: "Layout",
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """(1, tokens, heads, dim), in the precision of autocast where that is on."""
        ctx.dtypes = query.dtype, key.dtype, value.dtype
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        query, key, value = (t.to(dtype) for t in (query, key, value))
        output, sums = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format), []
        for run, (places, own) in enumerate(layout.places):
            mask = layout.added(run, window, dtype)
            found, log_sum = forward_kernel(
                query[:, :, own],
                pick(key, places),
                pick(value, places),
                0.0,
                mask is None,
                attn_mask=mask,
                scale=scale,
            )
            output[:, own] = found.transpose(1, 2)
            sums.append(log_sum)
        ctx.layout, ctx.scale, ctx.window = layout, scale, window
        ctx.save_for_backward(query, key, value, output, *sums)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, *sums = ctx.saved_tensors
        grads = [torch.zeros_like(t, dtype=d) for t, d in zip((query, key, value), ctx.dtypes, strict=True)]
        for run, (places, own) in enumerate(ctx.layout.places):
            exact = sum(place.stop - place.start for place in places) <= EXACT
            dtype = torch.promote_types(query.dtype, torch.float32) if exact else query.dtype
            mask = ctx.layout.added(run, ctx.window, dtype)
            q, k, v = query[:, :, own], pick(key, places), pick(value, places)
            o, g = output[:, own].transpose(1, 2), grad[:, own].transpose(1, 2)
            found = backward_kernel(
                *(t.to(dtype) for t in (g, q, k, v, o)), sums[run], 0.0, mask is None, attn_mask=mask, scale=ctx.scale
            )
            grads[0][:, :, own] = found[0]
            for whole, part in zip(grads[1:], found[1:], strict=True):
                start = 0
                for place in places:
                    length = place.stop - place.start
                    whole[:, :, place] += part[:, :, start : start + length]
                    start += length
        return *grads, None, None, None


def pick(states: torch.Tensor, places: list[slice]) -> torch.Tensor:
    """What a run attends to: its prefix, which stands before the run in the row, and its own tokens."""
    parts = [states[:, :, place] for place in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
