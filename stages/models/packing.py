"""Forward passes without padding, in which a prefix that two sequences share is read once.

All tokens of a batch form one row, so every layer computes each token once. Only attention must know which tokens
belong together: a RunLayout divides the row into runs. A run is a whole sequence, or the tokens that a sequence adds
to the beginning of another one. A pair is two runs: prompt + chosen, and rejected, which also attends to the prompt. A
group is a prompt with any number of completions: one run each, of which the first also holds the prompt."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from inspect import signature
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stages.models.run_attention import (
    RunAttention,
    RunLayout,
    autocast_dtype,
    causal_mask,
    join_ranges,
    send_tensor,
)

ATTENTION = "plumbline_packed"
# On these devices every run is a separate attention call; on others one call computes all runs. On a CPU one more call
# costs 18 µs, and one token of padding 10 µs (one core, fp32, 9 heads of 64, runs of 160 tokens).
RUN_BY_RUN_DEVICES = ("cpu",)
# not in PyTorch 2.11
SHARED_HEADS: dict[str, Any] = {}
if "enable_gqa" in signature(varlen_attn).parameters:
    SHARED_HEADS["enable_gqa"] = True
# the largest relative difference of two kernels in bf16; with another mask it is about 0.5
ROUNDING = 0.05


@dataclass
class PackedPairs:
    """The packing of a TRL batch of pairs into one row. TRL's batch is (2 pairs, width), padded on the right, all
    chosen above all rejected sequences. The row contains a pair's shared prefix once: its runs are the chosen
    sequence, and the remaining tokens of the rejected one. Other sequences are packed likewise, an odd one alone."""

    layout: RunLayout
    width: int

    @classmethod
    def from_batch(cls, input_ids: Tensor, attention_mask: Tensor) -> "PackedPairs":
        count, width = input_ids.shape
        device = input_ids.device
        if count % 2:
            input_ids = nn.functional.pad(input_ids, (0, 0, 0, 1))
            attention_mask = nn.functional.pad(attention_mask, (0, 0, 0, 1))
        chosen, rejected = input_ids.chunk(2)
        chosen_ends, rejected_ends = attention_mask.sum(1).chunk(2)
        shorter = torch.minimum(chosen_ends, rejected_ends)
        in_both = shorter[:, None] > torch.arange(width, device=device)
        shared = ((chosen == rejected) & in_both).cumprod(1).sum(1)
        lengths = torch.stack([chosen_ends, rejected_ends - shared], 1)
        prefixes = torch.stack([torch.zeros_like(shared), shared], 1)
        # chosen and rejected of each pair in turn; one transfer to the host
        runs, of_prefixes = torch.stack([lengths, prefixes]).flatten(1)[:, :count].tolist()
        return cls(RunLayout.from_lengths(runs, device, of_prefixes), width)

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Places in the flattened batch: of every token of the row, and of every token that the runs attend to."""
        layout = self.layout
        runs = np.arange(len(layout.lengths))
        pairs = (len(runs) + 1) // 2
        rows = runs // 2 + runs % 2 * pairs  # chosen sequences are above rejected ones
        starts = rows * self.width
        own = join_ranges(starts + layout.prefixes, layout.lengths)
        return layout.on_device(own), layout.on_device(join_ranges(starts, layout.totals))

    def pack(self, padded: Tensor) -> Tensor:
        """Return a (2 pairs, width, …) batch as one row, (1, tokens, …)."""
        return padded.flatten(0, 1).index_select(0, self.places[0])[None]

    def spread(self, packed: Tensor) -> Tensor:
        """Return one row, (1, tokens, …), as a (2 pairs, width, …) batch with 0 as padding. (Joining slices of the row
        would have a backward that copies the whole gradient once per slice.)"""
        padded = packed.new_zeros(len(self.layout.lengths) * self.width, *packed.shape[2:])
        padded.index_copy_(0, self.places[1], packed[0].index_select(0, self.layout.attended))
        return padded.view(-1, self.width, *packed.shape[2:])


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: RunLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention within the runs of `layout`; without a layout, transformers' SDPA attention, causal, with
    padding on the right if any. Query, key and value: (batch, heads, tokens, dim)."""
    window = kwargs.get("sliding_window")
    if layout is None:
        if attention_mask is None:
            attention_mask = causal_mask(query.shape[2], window, query.device)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    layout.used = attention_mask is None  # a mask that a layer makes itself would be lost
    layout.windowed |= window is not None
    states = [query, key, value]
    # The CPU kernel does not check strides: it gives wrong results unless the elements of a head are contiguous.
    contiguous = query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    fits = contiguous and query.shape[-1] == value.shape[-1] and not kwargs.get("dropout")
    attend = attend_padded
    if fits and query.device.type in RUN_BY_RUN_DEVICES:
        attend = attend_by_run
    # A meta tensor comes from `install_run_attention` on a model whose weights another process loads.
    elif fits and not query.is_meta:
        heads = query.shape[1], key.shape[1], query.shape[-1]
        if varlen_works(query.device, autocast_dtype(query), *heads):
            attend = attend_varlen
    return attend(module, states, layout, **kwargs), None


def attend_by_run(
    module: nn.Module, states: list[Tensor], layout: RunLayout, **kwargs: Any
) -> Tensor:
    """Call the kernel once per run: without padding, and computing attention of a shared prefix once."""
    return RunAttention.apply(*states, layout, kwargs.get("scaling"), kwargs.get("sliding_window"))  # type: ignore[no-any-return,no-untyped-call]


def attend_varlen(
    module: nn.Module, states: list[Tensor], layout: RunLayout, **kwargs: Any
) -> Tensor:
    """Call `varlen_attn` once over the row, in autocast's precision if that is on. No state is padded; keys and values
    of a prefix are copied for the run that continues it."""
    query, key, value = (t[0].transpose(0, 1).to(autocast_dtype(states[0])) for t in states)
    if any(layout.prefixes):
        key = key.index_select(0, layout.attended)
        value = value.index_select(0, layout.attended)
    window = (kwargs.get("sliding_window") or 0) - 1  # so many earlier tokens; -1: all
    output: Any = varlen_attn(
        query,
        key,
        value,
        *layout.boundaries,
        max(layout.lengths),
        int(layout.totals.max()),
        scale=kwargs.get("scaling"),
        window_size=(window, 0),
        **SHARED_HEADS,
    )
    return output[None]  # type: ignore[no-any-return]


def attend_padded(
    module: nn.Module, states: list[Tensor], layout: RunLayout, **kwargs: Any
) -> Tensor:
    """Call SDPA once over padded sequences, each with its prefix in front. This is plain causal attention."""
    rows, sources = layout.sequences
    padded = (t[0].transpose(0, 1)[rows].transpose(1, 2) for t in states)
    mask = causal_mask(rows.shape[1], kwargs.get("sliding_window"), rows.device)
    output, _ = sdpa_attention_forward(module, *padded, mask, **kwargs)
    return output.flatten(0, 1).index_select(0, sources)[None]


@cache
def varlen_works(
    device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, dim: int
) -> bool:
    """Return True if `attend_varlen` has the output and gradients of `attend_padded` on an example. With some versions
    of PyTorch, devices, types and sizes of heads, it lacks a kernel or an argument, or may align masks otherwise."""
    module: Any = SimpleNamespace(num_key_value_groups=heads // key_heads, is_causal=True)
    layout = RunLayout.from_lengths([7, 3, 0, 4], device, [0, 5, 2, 0], [0, 0, 0, 3])
    draw = torch.Generator().manual_seed(0)
    sizes = (heads, key_heads, key_heads, heads)
    tensors = [torch.randn(1, 14, n, dim, generator=draw) for n in sizes]

    def agrees() -> bool:
        *states, weights = (t.to(device, dtype).requires_grad_() for t in tensors)
        by_head = [state.transpose(1, 2) for state in states]
        results = list[tuple[Tensor, ...]]()
        for attend in (attend_padded, attend_varlen):
            output = attend(module, by_head, layout, sliding_window=3)
            results.append((output, *torch.autograd.grad(output, states, weights)))
        for expected, result in zip(*results, strict=True):
            if (result - expected).norm() > ROUNDING * expected.norm():
                return False
        return True

    # without this thread's autocast, gradient mode and checkpointing
    with ThreadPoolExecutor(1) as other_thread:
        try:
            return other_thread.submit(agrees).result()
        except (RuntimeError, TypeError):
            return False


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
    weights sharded by DeepSpeed, which are whole only inside its engine, and for layers that do not pass the layout or
    their window on to their attention, which a forward of one token shows."""
    original = attention_name(model)
    if original == ATTENTION:
        return True
    if not has_only_attention(model) or original != "sdpa" or is_deepspeed_zero3_enabled():
        return False
    model.set_attn_implementation(ATTENTION)
    layout = RunLayout.from_lengths([1], model.device)
    model.base_model(
        input_ids=layout.positions, position_ids=layout.positions, layout=layout, use_cache=False
    )
    config = model.config.get_text_config().to_dict()
    kinds = set(config.get("layer_types") or [])
    needs_window = config.get("sliding_window") and kinds != {"full_attention"}
    passes_on = layout.used and (layout.windowed or not needs_window)
    if not passes_on:
        model.set_attn_implementation(original)
    return passes_on


def add_layout(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch in TRL's format with the layout of its runs, if the model reads packed rows. On the CPU this does
    not wait for a device; without it, the forward reads the lengths of all runs from the device."""
    if attention_name(model) != ATTENTION:
        return batch
    if "position_ids" in batch:
        layout = RunLayout.from_positions(batch["position_ids"])
    else:
        layout = PackedPairs.from_batch(batch["input_ids"], batch["attention_mask"]).layout
    return batch | {"layout": layout}


def send_batch(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a batch with its tensors on the device. (Trainer would wait for the device at each tensor.)"""
    sent = dict(batch)
    for name, value in batch.items():
        if isinstance(value, Tensor):
            sent[name] = send_tensor(value, device)
    return sent


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

    def forward(
        input_ids: Tensor,
        attention_mask: Any = None,
        layout: RunLayout | None = None,
        **kwargs: Any,
    ) -> Any:
        if layout is None:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            layout = PackedPairs.from_batch(input_ids, attention_mask).layout
        layout = replace(layout, device=input_ids.device)
        pairs = PackedPairs(layout, input_ids.shape[1])
        packed = {
            "input_ids": pairs.pack(input_ids),
            "position_ids": layout.positions,
            "layout": layout,
        }
        # `packed` replaces a classifier's position_ids=None
        output = padded_forward(**kwargs | packed)
        output.last_hidden_state = pairs.spread(output.last_hidden_state)
        # one tensor per layer of a mixture of experts, (tokens, experts)
        logits = output.get("router_logits")
        if logits:
            spread = [pairs.spread(layer[None]).flatten(0, 1) for layer in logits]
            output.router_logits = tuple(spread)
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

    def forward(
        *args: Any, position_ids: Any = None, layout: RunLayout | None = None, **kwargs: Any
    ) -> Any:
        if position_ids is not None:
            layout = layout or RunLayout.from_positions(position_ids)
            layout = replace(layout, device=position_ids.device)
        return masked_forward(*args, position_ids=position_ids, layout=layout, **kwargs)

    backbone.forward = forward
    return True


def pack_groups(groups: Iterable[tuple[list[int], list[list[int]]]]) -> dict[str, Any]:
    """Return prompts, each with its completions, as one row of `read_groups`: `input_ids`, (1, tokens), with every
    prompt once and without the completions' last tokens, which predict nothing; the `layout` of its runs; and of all
    completions `shift_labels`, (1, tokens), and `scored`, (tokens,), the place at which each token is predicted."""
    ids, labels, scored, lengths, prefixes, continued = (list[int]() for _ in range(6))
    for prompt, completions in groups:
        first_run = len(lengths)
        end_of_prompt = len(ids) + len(prompt) - 1
        for completion in completions:
            own = completion[:-1]
            prefix = len(prompt)
            if len(lengths) == first_run:
                own = prompt + own
                prefix = 0
            ids += own
            labels += completion
            scored += [end_of_prompt, *range(len(ids) - len(completion) + 1, len(ids))]
            lengths.append(len(own))
            prefixes.append(prefix)
            continued.append(first_run)
    return {
        "input_ids": torch.tensor([ids]),
        "shift_labels": torch.tensor([labels]),
        "scored": torch.tensor(scored),
        "layout": RunLayout.from_lengths(lengths, torch.device("cpu"), prefixes, continued),
    }


def read_groups(model: PreTrainedModel) -> bool:
    """Make the model read rows of `pack_groups`, and return hidden states at the places `scored`. Return False if
    `install_run_attention` fails; the model then reads every run behind its prefix, padded on the right."""
    packs = install_run_attention(model)
    backbone = model.base_model
    plain_forward = backbone.forward

    def forward(input_ids: Tensor, layout: RunLayout, scored: Tensor, **kwargs: Any) -> Any:
        layout = replace(layout, device=input_ids.device)
        if packs:
            packed = {"position_ids": layout.positions, "layout": layout}
            output = plain_forward(**kwargs | packed | {"input_ids": input_ids})
            states = output.last_hidden_state
        else:
            # A causal model needs no mask for padding on the right.
            places, sources = layout.sequences
            output = plain_forward(**kwargs | {"input_ids": input_ids[0][places]})
            states = output.last_hidden_state.flatten(0, 1).index_select(0, sources)[None]
        output.last_hidden_state = states.index_select(1, scored)
        return output

    backbone.forward = forward
    return packs
