"""Forward passes without padding, in which a prefix that two sequences share is read once.

All tokens of a batch form one row, so every layer computes each token once. Only attention must know which tokens
belong together: a RunLayout divides the row into runs. A run is a whole sequence, or the tokens that a sequence adds
to the beginning of another one. A pair is two runs: prompt + chosen, and rejected, which also attends to the prompt.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stages.models.run_attention import RunAttention, RunLayout, causal_mask

ATTENTION = "plumbline_packed"
# On these devices every run is a separate attention call; on others one padded call computes all runs. On a CPU one
# more call costs 18 µs, and one token of padding 10 µs (one core, fp32, 9 heads of 64, runs of 160 tokens).
RUN_BY_RUN_DEVICES = ("cpu",)


@dataclass
class PackedPairs:
    """The packing of a TRL batch of pairs into one row. TRL's batch is (2 pairs, width), padded on the right, all
    chosen above all rejected sequences. The row contains a pair's shared prefix once: its runs are the chosen
    sequence, and the remaining tokens of the rejected one."""

    layout: RunLayout
    width: int

    @classmethod
    def from_batch(cls, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> "PackedPairs":
        half, width = len(input_ids) // 2, input_ids.shape[1]
        ends = attention_mask.sum(1)
        in_both = torch.minimum(ends[:half], ends[half:])[:, None] > torch.arange(width, device=input_ids.device)
        shared = ((input_ids[:half] == input_ids[half:]) & in_both).cumprod(1).sum(1)
        lengths = torch.stack([ends[:half], ends[half:] - shared], 1).flatten().tolist()
        prefixes = torch.stack([torch.zeros_like(shared), shared], 1).flatten().tolist()
        return cls(RunLayout.from_lengths(lengths, input_ids.device, prefixes), width)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """Return a (2 pairs, width, …) batch as one row, (1, tokens, …)."""
        half = len(padded) // 2
        rows = [row for pair in zip(padded[:half], padded[half:], strict=True) for row in pair]
        runs = zip(rows, self.layout.prefixes, self.layout.lengths, strict=True)
        return torch.cat([row[prefix : prefix + length] for row, prefix, length in runs])[None]

    def spread(self, packed: torch.Tensor) -> torch.Tensor:
        """Return one row, (1, tokens, …), as a (2 pairs, width, …) batch with 0 as padding."""
        runs = torch.split(packed[0], self.layout.lengths)
        chosen, shared = runs[::2], self.layout.prefixes[1::2]
        rejected = [torch.cat([row[:n], tail]) for row, tail, n in zip(chosen, runs[1::2], shared, strict=True)]
        rows = pad_sequence([*chosen, *rejected], batch_first=True)
        return pad(rows, (0, 0) * (rows.dim() - 2) + (0, self.width - rows.shape[1]))


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layout: RunLayout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention within the runs of `layout`; without a layout, transformers' SDPA attention, causal, with
    padding on the right if any. Query, key and value: (batch, heads, tokens, dim)."""
    window = kwargs.get("sliding_window")
    if layout is None:
        if attention_mask is None:
            attention_mask = causal_mask(query.shape[2], window, query.device)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    layout.used = True
    states = [query, key, value]
    # The CPU kernel does not check strides: it gives wrong results unless the elements of a head are contiguous.
    fits = query.shape[-1] == value.shape[-1] and all(t.stride(-1) == 1 for t in states) and not kwargs.get("dropout")
    attend = attend_by_run if query.device.type in RUN_BY_RUN_DEVICES and fits else attend_padded
    return attend(module, states, layout, **kwargs), None


def attend_by_run(module: nn.Module, states: list[torch.Tensor], layout: RunLayout, **kwargs: Any) -> torch.Tensor:
    """Call the kernel once per run: without padding, and computing attention of a shared prefix once."""
    return RunAttention.apply(*states, layout, kwargs.get("scaling"), kwargs.get("sliding_window"))  # type: ignore[no-any-return,no-untyped-call]


def attend_padded(module: nn.Module, states: list[torch.Tensor], layout: RunLayout, **kwargs: Any) -> torch.Tensor:
    """Call SDPA once over padded sequences, each with its prefix in front. This is plain causal attention, which has
    the fastest kernels, and one launch for any number of runs."""
    rows, sources = layout.sequences
    padded = (t[0].transpose(0, 1)[rows].transpose(1, 2) for t in states)
    mask = causal_mask(rows.shape[1], kwargs.get("sliding_window"), rows.device)
    output, _ = sdpa_attention_forward(module, *padded, mask, **kwargs)
    return output.flatten(0, 1).index_select(0, sources)[None]


AttentionInterface.register(ATTENTION, attention)


def attention_name(model: PreTrainedModel) -> str:
    """Return the name of the attention that the model's layers call."""
    return str(model.config.get_text_config()._attn_implementation)


def has_only_attention(model: PreTrainedModel) -> bool:
    """Return True if the model stores only keys and values of earlier tokens, and has no recurrent state."""
    kinds = set(model.config.get_text_config().to_dict().get("layer_types") or [])
    attends = kinds <= {"full_attention", "sliding_attention"}
    return bool(model.is_backend_compatible() and not model._is_stateful and attends)


@torch.no_grad()
def install_run_attention(model: PreTrainedModel) -> bool:
    """Make the model's layers call our attention, if they support transformers' attention interface.

    Return False, with the model unchanged, for a recurrent state, for attention other than SDPA (soft-capping), for
    weights sharded by DeepSpeed, which are whole only inside its engine, and for layers that do not pass the layout on
    to their attention, which a forward of one token shows.
    """
    original = attention_name(model)
    if original == ATTENTION:
        return True
    if not has_only_attention(model) or original != "sdpa" or is_deepspeed_zero3_enabled():
        return False
    model.set_attn_implementation(ATTENTION)
    layout = RunLayout.from_lengths([1], model.device)
    model.base_model(input_ids=layout.positions, position_ids=layout.positions, layout=layout, use_cache=False)
    if not layout.used:
        model.set_attn_implementation(original)
    return layout.used


@contextmanager
def allow_left_padding(model: PreTrainedModel) -> Iterator[None]:
    """Around forwards with rows padded on the left, use transformers' attention: only that gets masks for them."""
    has_run_attention = attention_name(model) == ATTENTION
    if has_run_attention:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if has_run_attention:
            model.set_attn_implementation(ATTENTION)


def require_unpacked(model: PreTrainedModel) -> None:
    """Raise ValueError if `pack_pairs` or `pack_segments` changed the model's forward: it cannot complete prompts."""
    if model.base_model.forward.__module__ == __name__:
        raise ValueError("this model reads packed rows; load it again to complete prompts with it")


def pack_pairs(model: PreTrainedModel) -> bool:
    """Make the model read each pair of a TRL batch as prompt, chosen, rejected, and return its output in TRL's layout.
    Return False if `install_run_attention` fails; the model then reads padded batches, as in TRL."""
    if not install_run_attention(model):
        return False
    backbone = model.base_model
    padded_forward = backbone.forward

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pairs = PackedPairs.from_batch(input_ids, mask)
        layout = pairs.layout
        packed = {"input_ids": pairs.pack(input_ids), "position_ids": layout.positions, "layout": layout}
        output = padded_forward(**kwargs | packed)  # `packed` replaces a classifier's position_ids=None
        output.last_hidden_state = pairs.spread(output.last_hidden_state)
        if logits := output.get("router_logits"):  # one tensor per layer of a mixture of experts, (tokens, experts)
            output.router_logits = tuple(pairs.spread(layer[None]).flatten(0, 1) for layer in logits)
        return output

    backbone.forward = forward
    return True


def pack_segments(model: PreTrainedModel) -> bool:
    """Make attention stay within the examples of a packed row, without a mask of (tokens, tokens). Return False if
    `install_run_attention` fails; such a mask then separates the examples, unless a recurrent state exists."""
    if not install_run_attention(model):
        return False
    backbone = model.base_model
    masked_forward = backbone.forward

    def forward(*args: Any, position_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        layout = RunLayout.from_positions(position_ids) if position_ids is not None else None
        return masked_forward(*args, position_ids=position_ids, layout=layout, **kwargs)

    backbone.forward = forward
    return True
