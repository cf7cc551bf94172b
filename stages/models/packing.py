"""Forward passes without padding, in which a prefix that two sequences share is read once.

All tokens of a batch stand in one row, so that every layer computes each of them once. Only attention needs to know
which tokens belong together: the layout divides the row into runs. A run is a whole sequence, or what a sequence adds
to the beginning of another. A pair is two runs: prompt + chosen; and rejected, which also attends to the prompt.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stages.models.run_attention import RunAttention, RunLayout, causal_mask

ATTENTION = "plumbline_packed"
# Devices on which every run has an attention call of its own; on others one padded call serves all runs. On a CPU one
# more call costs 18 µs, and one token of padding 10 µs (one core, fp32, 9 heads of 64, runs of 160 tokens).
RUN_BY_RUN_DEVICES = ("cpu",)


@dataclass
class PackedPairs:
    """How a TRL batch of pairs is packed into a row, and spread again. TRL's batch is (2 pairs, width), padded on the
    right, all chosen sequences above all rejected ones. The prefix that the two sequences of a pair share stands in
    the row once: a pair's runs are its chosen sequence, and the rest of its rejected one.
    """

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
        """(2 pairs, width, …) as (1, tokens, …)."""
        half = len(padded) // 2
        rows = [row for pair in zip(padded[:half], padded[half:], strict=True) for row in pair]
        runs = zip(rows, self.layout.prefixes, self.layout.lengths, strict=True)
        return torch.cat([row[prefix : prefix + length] for row, prefix, length in runs])[None]

    def spread(self, packed: torch.Tensor) -> torch.Tensor:
        """(1, tokens, …) as (2 pairs, width, …), 0 in the padding."""
        runs = torch.split(packed[0], self.layout.lengths)
        chosen, shared = runs[::2], self.layout.prefixes[1::2]
        rejected = [
            torch.cat([chosen_row[:n], tail]) for chosen_row, tail, n in zip(chosen, runs[1::2], shared, strict=True)
        ]
        rows = pad_sequence([*chosen, *rejected], batch_first=True)
        return pad(rows, (0, 0) * (rows.dim() - 2) + (0, self.width - rows.shape[1]))


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layout: RunLayout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA attention over the runs; without a layout, over what it is given (causal, and padded on the
    right if at all). Query, key and value: (batch, heads, tokens, dim)."""
    window = kwargs.get("sliding_window")
    if layout is None:
        if attention_mask is None:
            attention_mask = causal_mask(query.shape[2], window, query.device)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    layout.used = True
    states = [query, key, value]
    # What the kernel of a CPU is made for: it reads on where the elements of a head are not next to each other.
    kernel_fits = (
        query.shape[-1] == value.shape[-1] and all(t.stride(-1) == 1 for t in states) and not kwargs.get("dropout")
    )
    attend_to_runs = (
        attend_run_by_run if query.device.type in RUN_BY_RUN_DEVICES and kernel_fits else attend_all_at_once
    )
    return attend_to_runs(module, states, layout, **kwargs), None


def attend_run_by_run(
    module: torch.nn.Module, states: list[torch.Tensor], layout: RunLayout, **kwargs: Any
) -> torch.Tensor:
    """One kernel call for every run: nothing is padded, and a prefix attends once, not again for what continues it."""
    return RunAttention.apply(*states, layout, kwargs.get("scaling"), kwargs.get("sliding_window"))  # type: ignore[no-any-return,no-untyped-call]


def attend_all_at_once(
    module: torch.nn.Module, states: list[torch.Tensor], layout: RunLayout, **kwargs: Any
) -> torch.Tensor:
    """One SDPA call over padded sequences, each with its prefix in front. This is plain causal attention, which has
    the fastest kernels, and a single launch however many runs there are."""
    rows, sources = layout.sequences
    padded = (t[0].transpose(0, 1)[rows].transpose(1, 2) for t in states)
    mask = causal_mask(rows.shape[1], kwargs.get("sliding_window"), rows.device)
    output, _ = sdpa_attention_forward(module, *padded, mask, **kwargs)
    return output.flatten(0, 1).index_select(0, sources)[None]


AttentionInterface.register(ATTENTION, attention)


def attention_name(model: PreTrainedModel) -> str:
    """The name of the attention that the model's layers call."""
    return str(model.config.get_text_config()._attn_implementation)


def has_only_attention(model: PreTrainedModel) -> bool:
    """Whether keys and values are all that the model keeps of earlier tokens: it has no recurrent state."""
    kinds = set(model.config.get_text_config().to_dict().get("layer_types") or [])
    attends = kinds <= {"full_attention", "sliding_attention"}
    return bool(model.is_backend_compatible() and not model._is_stateful and attends)


@torch.no_grad()
def install_run_attention(model: PreTrainedModel) -> bool:
    """Give the model's layers our attention, if theirs takes transformers' attention interface.

    Returns:
        False, with the model as it was, where that cannot work: for a recurrent state; for attention other than SDPA
        (soft-capping); for weights that DeepSpeed has sharded, since they are whole only inside its engine; and for
        layers that do not hand the layout on to their attention, which a forward of one token tells.
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
    """Around forwards whose rows may be padded on the left: transformers makes masks for its own attention only, which
    is what the model then has, whether or not it was laid out before."""
    has_run_attention = attention_name(model) == ATTENTION
    if has_run_attention:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if has_run_attention:
            model.set_attn_implementation(ATTENTION)


def require_unpacked(model: PreTrainedModel) -> None:
    """Raise ValueError where `pack_pairs` or `pack_segments` changed what the model reads: it completes no prompts."""
    if model.base_model.forward.__module__ == __name__:
        raise ValueError("this model reads packed rows; load it again to complete prompts with it")


def pack_pairs(model: PreTrainedModel) -> bool:
    """Have the model read each pair of a TRL batch as prompt, chosen, rejected, and return its output in TRL's layout.

    Returns:
        False where `lay_out` cannot be done; the model then reads padded batches, as TRL has it.
    """
    if not install_run_attention(model):
        return False
    backbone = model.base_model
    padded_forward = backbone.forward

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        pairs = PackedPairs.from_batch(
            input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask
        )
        layout = pairs.layout
        packed = {"input_ids": pairs.pack(input_ids), "position_ids": layout.positions, "layout": layout}
        output = padded_forward(**kwargs | packed)  # a classifier's own positions are None
        output.last_hidden_state = pairs.spread(output.last_hidden_state)
        if logits := output.get("router_logits"):  # of a mixture of experts, a layer each: (tokens, experts)
            output.router_logits = tuple(pairs.spread(layer[None]).flatten(0, 1) for layer in logits)
        return output

    backbone.forward = forward
    return True


def pack_segments(model: PreTrainedModel) -> bool:
    """Have the model attend within the examples of a packed row, without a mask as wide as the row is long.

    Returns:
        False where `lay_out` cannot be done. Such a mask then keeps them apart, unless there is a recurrent state.
    """
    if not install_run_attention(model):
        return False
    backbone = model.base_model
    masked_forward = backbone.forward

    def forward(*args: Any, position_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        layout = RunLayout.from_positions(position_ids) if position_ids is not None else None
        return masked_forward(*args, position_ids=position_ids, layout=layout, **kwargs)

    backbone.forward = forward
    return True
