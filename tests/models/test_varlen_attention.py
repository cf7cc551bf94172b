"""Tests of attention over all runs in one call: `varlen_attn` with a reference kernel against padded sequences."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.utils._python_dispatch import TorchDispatchMode

from stages.config.choices import Checkpointing
from stages.models import packing
from stages.models.packing import (
    attend_by_run,
    attend_padded,
    attend_varlen,
    pack_pairs,
    pack_segments,
    varlen_works,
)
from stages.models.run_attention import RunLayout
from stages.training.budget import enable_checkpointing
from tests.flash_reference import flash_attention_on
from tests.samplers.test_samplers import ARCHITECTURES

CPU = torch.device("cpu")
LAYOUTS = 60


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the CPU attend as a GPU does."""
    monkeypatch.setattr(packing, "RUN_BY_RUN_DEVICES", ())
    with flash_attention_on("CPU"):
        yield


def draw_layout(draw: torch.Generator) -> RunLayout:
    """Return up to seven runs of 0 to 11 tokens. A run is a whole sequence, or continues any whole sequence before it,
    from any of its tokens on."""

    def below(most: int) -> int:
        return int(torch.randint(most, (), generator=draw))

    lengths, prefixes, continued = [1 + below(11)], [0], [0]
    for run in range(1, 1 + below(7)):
        whole = [i for i in range(run) if not prefixes[i]]
        continued.append(whole[below(len(whole))])
        prefixes.append(below(2) * below(lengths[continued[-1]] + 1))
        lengths.append(below(12))
    return RunLayout.from_lengths(lengths, CPU, prefixes, continued)


@pytest.mark.extended
def test_varlen_attention_over_random_layouts_is_that_of_padded_sequences_and_of_single_runs(
    flash: None,
) -> None:
    """Check outputs and gradients in fp32, with shared prefixes, empty runs, windows, and shared key heads. Single
    runs are found without the indices that the other two share."""
    draw = torch.Generator().manual_seed(0)
    for i in range(LAYOUTS):
        layout = draw_layout(draw)
        window = (None, 1, 3, 8, 50)[i % 5]
        key_heads = (4, 2, 1)[i % 3]
        tokens = sum(layout.lengths)
        states = list[torch.Tensor]()
        for heads in (4, key_heads, key_heads):
            states.append(torch.randn(1, heads, tokens, 8, generator=draw).requires_grad_())
        weights = torch.randn(1, tokens, 4, 8, generator=draw)
        module: Any = SimpleNamespace(num_key_value_groups=4 // key_heads, is_causal=True)
        results = list[torch.Tensor]()
        for attend in (attend_by_run, attend_padded, attend_varlen):
            output = attend(module, states, layout, sliding_window=window)
            tensors = [output, *torch.autograd.grad(output, states, weights)]
            results.append(torch.cat([t.detach().flatten() for t in tensors]))
        by_run, *at_once = results
        for other in at_once:
            assert float((other - by_run).abs().max() / by_run.abs().max()) <= 1e-6


@pytest.mark.parametrize(
    "changed",
    [
        {"window_size": (3, 0)},  # a token longer
        {"window_size": (-1, 0)},  # no window
        {"scale": 1.0},
        {"unknown": 1},  # an argument that this version lacks
    ],
)
def test_a_varlen_kernel_that_computes_something_else_is_not_used(
    changed: dict[str, Any], flash: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Change arguments on their way, as another version might read them."""
    varlen_works.cache_clear()
    assert varlen_works(CPU, torch.bfloat16, 4, 2, 8)
    varlen_works.cache_clear()

    def misled(*arguments: Any, **options: Any) -> torch.Tensor:
        return varlen_attn(*arguments, **options | changed)

    monkeypatch.setattr(packing, "varlen_attn", misled)
    assert not varlen_works(CPU, torch.bfloat16, 4, 2, 8)


class Operators(TorchDispatchMode):
    """Records the names of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names = list[str]()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(op.name())
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "checkpointing", [Checkpointing.none, Checkpointing.selective, Checkpointing.full]
)
def test_selective_checkpointing_calls_varlen_attention_once_per_layer(
    checkpointing: Checkpointing, flash: None
) -> None:
    """Check a first step, in which the kernel is also tried: a trial must not enter what checkpointing stores."""
    torch.manual_seed(0)
    model = ARCHITECTURES["llama"]().train()
    assert pack_pairs(model)
    if checkpointing is not Checkpointing.none:
        enable_checkpointing(model, checkpointing)
    varlen_works.cache_clear()
    ids = torch.arange(20, 60).view(4, 10)
    ids[2:, :6] = ids[:2, :6]
    with Operators() as operators, torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, use_cache=False).logits.float().pow(2).mean()
    with operators:
        loss.backward()
    layers = model.config.num_hidden_layers
    calls = operators.names.count("torch_attn::_varlen_attn")
    assert calls == layers * (1 + (checkpointing is Checkpointing.full))
    assert "aten::_scaled_dot_product_attention" not in "".join(operators.names)


@pytest.mark.parametrize("packed", ["pairs", "segments"])
def test_a_layout_handed_over_gives_the_same_and_reads_nothing_back(packed: str) -> None:
    """Without a layout, a forward reads lengths from the device (`item` below a `tolist`, or a `nonzero`)."""
    torch.manual_seed(0)
    model = ARCHITECTURES["llama"]()
    ids = torch.arange(20, 44).view(4, 6)
    ids[2:, :3] = ids[:2, :3]
    if packed == "pairs":
        assert pack_pairs(model)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        assert pack_segments(model)
        batch = {"input_ids": ids.view(1, -1), "position_ids": (torch.arange(24) % 8)[None]}
    laid_out = packing.add_layout(model, batch)
    outputs, operators = [], []
    for each in (batch, laid_out):
        with Operators() as mode, torch.no_grad():
            outputs.append(model(**each, use_cache=False).logits)
        operators.append({"aten::cumprod", "aten::nonzero"} & {*mode.names})
    assert torch.equal(*outputs)
    assert len(operators[0]) == 1 and not operators[1]
