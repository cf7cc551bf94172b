"""Packed forwards: what padded ones compute, in values and gradients, with fewer tokens through the layers."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from stages import packing
from stages.models import load_model
from stages.packing import Layout, pack_pairs, pack_segments
from tests.test_samplers import ARCHITECTURES, SHAPE

PACKED = [name for name in ARCHITECTURES if name != "gemma2"]
WIDTH = 30
LENGTHS = [20, 30, 14, 22, 13, 14]  # three pairs: chosen, then rejected
SHARED = [12, 12, 14]  # tokens that a pair has in common; the last two are the same sequence


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """A batch as TRL collates it: ids and attention mask, (6, WIDTH)."""
    ids = torch.randint(3, 600, (6, WIDTH), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]
    for i, shared in enumerate(SHARED):
        ids[3 + i, :shared] = ids[i, :shared]
        ids[3 + i, shared : shared + 1] = (ids[i, shared : shared + 1] + 1) % 600
    return ids * mask, mask.long()


def counted(model: PreTrainedModel) -> list[int]:
    """How many tokens every forward sends through the first layer."""
    seen: list[int] = []
    model.base_model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:-1].numel()))
    return seen


def close(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    """Gradients within fp32 noise: 1e-5 of the largest of each parameter."""
    return all(
        float((p.grad - q.grad).abs().max()) <= 1e-5 * max(1.0, float(p.grad.abs().max()))
        for p, q in zip(a.parameters(), b.parameters(), strict=True)
        if p.grad is not None
    )


@pytest.mark.parametrize("name", PACKED)
def test_pairs_are_scored_as_in_a_padded_batch_and_each_token_is_read_once(name: str) -> None:
    torch.manual_seed(0)
    padded: PreTrainedModel = ARCHITECTURES[name]()
    packed = copy.deepcopy(padded)
    assert pack_pairs(packed)
    seen = counted(packed)
    ids, mask = pairs()
    weight = torch.randn(SHAPE["hidden_size"])
    outputs = []
    for model in (padded, packed):
        hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
        (hidden @ weight).square().sum().backward()
        outputs.append(hidden)
    assert torch.allclose(*outputs, atol=1e-5)
    assert close(padded, packed)
    assert seen == [sum(LENGTHS) - sum(SHARED)]


@pytest.mark.parametrize("name", PACKED)
def test_examples_of_a_packed_row_do_not_see_each_other(name: str) -> None:
    torch.manual_seed(0)
    alone: PreTrainedModel = ARCHITECTURES[name]()
    packed = copy.deepcopy(alone)
    assert pack_segments(packed)
    lengths = [5, 9, 14]
    ids = torch.randint(3, 600, (1, sum(lengths)))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    weight = torch.randn(SHAPE["hidden_size"])
    together = packed.base_model(input_ids=ids, position_ids=positions).last_hidden_state
    apart = torch.cat([alone.base_model(input_ids=part).last_hidden_state for part in ids.split(lengths, 1)], 1)
    for hidden in (apart, together):
        (hidden @ weight).square().sum().backward()
    assert torch.allclose(apart, together, atol=1e-5)
    assert close(alone, packed)


@pytest.mark.parametrize("pack", [pack_pairs, pack_segments])
def test_attention_that_cannot_be_laid_out_is_left_alone(pack: Callable[[PreTrainedModel], bool]) -> None:
    model = Gemma2ForCausalLM(Gemma2Config(head_dim=8, attn_implementation="eager", **SHAPE))
    forward = model.base_model.forward
    assert not pack(model)
    assert model.base_model.forward == forward
    assert model.config._attn_implementation == "eager"


def test_a_layout_goes_there_and_back() -> None:
    ids, mask = pairs()
    layout = Layout.of_pairs(ids, mask)
    assert torch.equal(layout.spread(layout.pack(ids[..., None]))[..., 0] * mask, ids)
    assert layout.positions.max() == max(LENGTHS) - 1


def test_what_is_saved_knows_nothing_of_packing(built: Path, tmp_path: Path) -> None:
    model = load_model(next((built / "sft").glob("*/model")))
    pack_pairs(model)
    model.save_pretrained(tmp_path)
    assert packing.ATTENTION not in (tmp_path / "config.json").read_text()
