"""`aten::_flash_attention_forward` and its backward in plain products, one sequence after another.

PyTorch has these operators on GPUs alone. Registered for another device, they let `varlen_attn` run there, with all of
PyTorch's own code around the kernel. Queries and keys of a sequence are aligned at their ends, as in Flash Attention:
query i of n sees key j of m if -right <= (i + m - n) - j <= left, where -1 stands for no limit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

OPERATORS = ("_flash_attention_forward", "_flash_attention_backward")


def weigh(
    query: torch.Tensor, key: torch.Tensor, scale: float, left: int, right: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one sequence's attention weights, (heads, n, m), and log-sums, (heads, n)."""
    n, m = len(query), len(key)
    distance = torch.arange(m - n, m, device=query.device)[:, None] - torch.arange(
        m, device=query.device
    )
    hidden = ((distance > left) & (left >= 0)) | ((distance < -right) & (right >= 0))
    scores = (torch.einsum("nhd,mhd->hnm", query, key) * scale).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1), scores.logsumexp(-1)


def sequences(
    states: tuple[torch.Tensor, ...],
    ends_q: torch.Tensor,
    ends_k: torch.Tensor,
    most_q: int,
    most_k: int,
) -> Iterator[tuple[slice, slice, list[torch.Tensor]]]:
    """Yield every sequence's slices of queries and of keys, and its query, key and value, the last two for each head
    of the query. Refuse what a kernel would silently misread."""
    for ends, most, count in ((ends_q, most_q, len(states[0])), (ends_k, most_k, len(states[1]))):
        assert ends.dtype is torch.int32 and ends.device == states[0].device
        assert ends[0] == 0 and ends[-1] == count and int(ends.diff().max()) == most
    assert len(ends_q) == len(ends_k) and all(t.stride(-1) == 1 for t in states)
    group = states[0].shape[1] // states[1].shape[1]
    query, key, value = states[0], *(t.repeat_interleave(group, 1) for t in states[1:])
    for (q0, q1), (k0, k1) in zip(
        pairwise(ends_q.tolist()), pairwise(ends_k.tolist()), strict=True
    ):
        yield slice(q0, q1), slice(k0, k1), [query[q0:q1], key[k0:k1], value[k0:k1]]


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends_q: torch.Tensor,
    ends_k: torch.Tensor,
    most_q: int,
    most_k: int,
    dropout: float,
    causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int = -1,
    window_size_right: int = -1,
    **_: Any,
) -> tuple[torch.Tensor, ...]:
    window = window_size_left, 0 if causal else window_size_right
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    log_sums = query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    for own, _, (q, k, v) in sequences((query, key, value), ends_q, ends_k, most_q, most_k):
        weights, log_sums[:, own] = weigh(q, k, scale, *window)
        output[own] = torch.einsum("hnm,mhd->nhd", weights, v)
    empty = query.new_empty(0)
    return output, log_sums, empty, empty, empty


def backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    log_sums: torch.Tensor,
    ends_q: torch.Tensor,
    ends_k: torch.Tensor,
    most_q: int,
    most_k: int,
    dropout: float,
    causal: bool,
    *_: Any,
    scale: float | None = None,
    window_size_left: int = -1,
    window_size_right: int = -1,
) -> tuple[torch.Tensor, ...]:
    window = window_size_left, 0 if causal else window_size_right
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    grads = [
        torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (query, key, value)
    ]
    for own, attended, (q, k, v) in sequences((query, key, value), ends_q, ends_k, most_q, most_k):
        weights, _ = weigh(q, k, scale, *window)
        by_weights = torch.einsum("nhd,mhd->hnm", grad[own], v)
        by_scores = weights * (by_weights - (weights * by_weights).sum(-1, keepdim=True)) * scale
        grads[0][own] = torch.einsum("hnm,mhd->nhd", by_scores, k)
        for whole, products, states in ((grads[1], by_scores, q), (grads[2], weights, grad[own])):
            by_head = torch.einsum("hnm,nhd->mhd", products, states)
            whole[attended] = by_head.unflatten(1, (whole.shape[1], -1)).sum(2)
    return tuple(grads)


def register(key: str) -> torch.library.Library:
    """Give the devices of a dispatch key (`CPU`, `PrivateUse1`) both operators, as long as the result exists."""
    library = torch.library.Library("aten", "IMPL")
    for name, function in zip(OPERATORS, (forward, backward), strict=True):
        library.impl(name, function, key)
    return library


@contextmanager
def flash_attention_on(key: str) -> Iterator[None]:
    """Around code that attends, let `varlen_attn` work on the devices of a dispatch key."""
    # `register` is also called while torch is imported
    from stages.models.packing import varlen_works

    library = register(key)
    varlen_works.cache_clear()
    try:
        yield
    finally:
        library._destroy()
        varlen_works.cache_clear()
