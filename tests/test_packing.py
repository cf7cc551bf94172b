"""Packed forwards: what padded ones compute, in values and gradients, with fewer tokens through the layers."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from stages import packing, sft
from stages.errors import UserError
from stages.models import load_model
from stages.packing import Layout, pack_pairs, pack_segments
from stages.store import Work
from tests.helpers import Chain, settings
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


def test_layers_that_hand_no_layout_on_are_left_alone() -> None:
    sizes = {k: v for k, v in SHAPE.items() if k != "head_dim"}
    model = NemotronForCausalLM(NemotronConfig(**sizes))
    assert not pack_pairs(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_mixture_of_experts_gives_its_router_in_trls_layout() -> None:
    torch.manual_seed(0)
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    padded = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **sizes)).eval()
    packed = copy.deepcopy(padded)
    assert pack_pairs(packed)
    ids, mask = pairs()
    a, b = (
        m.base_model(input_ids=ids, attention_mask=mask, output_router_logits=True).router_logits
        for m in (padded, packed)
    )
    kept = mask.flatten().bool()
    for theirs, ours in zip(a, b, strict=True):
        assert torch.allclose(theirs[kept], ours[kept], atol=1e-5)


def test_packing_is_refused_where_a_state_would_leak(chain: Chain, tmp_path: Path) -> None:
    """A recurrent model has no attention to lay out, and no mask that keeps examples apart."""
    base = shutil.copytree(chain.folder("base"), tmp_path / "base")
    vocabulary = json.loads((base / "model" / "config.json").read_text())["vocab_size"]
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": vocabulary, "state_size": 4}
    MambaForCausalLM(MambaConfig(**sizes)).save_pretrained(base / "model")
    cfg = replace(settings("recipe=tiny").sft, packing=True, batch_size=1)
    cfg.runtime.micro_batch = 1
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="would leak from one example into the next"):
        sft.run(cfg, {"base": base, "data": chain.folder("data")}, Work(tmp_path / "out", lambda m, s: None))


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
