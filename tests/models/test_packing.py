"""Tests of packed examples: they train like separate examples, or an error stops the training."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    BloomConfig,
    BloomForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
)
from transformers.integrations import deepspeed
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl import SFTConfig, SFTTrainer

from stages import sft
from stages.config.blocks.objective import LoRA
from stages.config.choices import Precision
from stages.config.errors import UserError
from stages.models import packing
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.models.packing import PackedPairs, pack_pairs, pack_segments
from stages.objectives.sft import IsolationCheck
from stages.store.workspace import StageDir
from stages.training import adapters
from stages.training.token_rows import TokenRows
from tests.equality import TOKENS, assert_equal, step
from tests.helpers import Chain, settings
from tests.samplers.test_samplers import ARCHITECTURES, SHAPE

WIDTH = 30
LENGTHS = [20, 30, 14, 22, 13, 14]  # three pairs: chosen, then rejected
SHARED = [12, 12, 14]  # the number of tokens that a pair shares; the last two are the same sequence
# Two kinds of attention within the examples of a row: by a RunLayout, or by transformers' dense mask from positions.
WAYS = [(name, "laid out") for name in ("llama", "mistral", "gemma3")]
WAYS += [("gemma3", "sdpa"), ("gemma2", "eager")]


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch in TRL's layout: ids and attention mask, (6, WIDTH)."""
    ids = torch.randint(3, 600, (6, WIDTH), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]
    for i, shared in enumerate(SHARED):
        ids[3 + i, :shared] = ids[i, :shared]
        ids[3 + i, shared : shared + 1] = (ids[i, shared : shared + 1] + 1) % 600
    return ids * mask, mask.long()


def rows() -> TokenRows:
    """Return tokenised examples; the first third of each is not trained."""
    rows = TokenRows()
    for i, length in enumerate(LENGTHS):
        ids = torch.randint(3, 600, (length,), generator=torch.Generator().manual_seed(i)).tolist()
        rows.add(str(i), (ids, [place >= length // 3 for place in range(length)]))
    return rows


def sft_trainer(model: Any, built: Path, folder: Path, packed: bool) -> SFTTrainer:
    """Return TRL's trainer with the stage's settings; its collator joins packed rows without a mask."""
    settled = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
    args = SFTConfig(
        str(folder),
        packing=packed,
        eval_packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **settled,
    )
    return SFTTrainer(
        model,
        args=args,
        train_dataset=rows().dataset,
        processing_class=load_contract(next((built / "sft").glob("*/model"))).tokenizer,
    )


def make(name: str, attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = ARCHITECTURES[name]()
    if attention == "laid out":
        assert pack_segments(model)
    else:
        model.set_attn_implementation(attention)
    return model


@pytest.mark.parametrize(("name", "attention"), WAYS)
def test_examples_teach_the_same_packed_and_alone(
    name: str, attention: str, built: Path, tmp_path: Path
) -> None:
    trained = torch.tensor(sum(rows().trained_counts))
    bins = rows()
    bins.pack(2 * WIDTH, batch_size=1)
    assert 1 < len(bins) < len(rows())
    packing_trainer = sft_trainer(make(name, attention), built, tmp_path, packed=True)
    plain_trainer = sft_trainer(make(name, attention), built, tmp_path, packed=False)
    together = step(packing_trainer, list(bins.dataset), num_items_in_batch=trained)
    alone = step(plain_trainer, list(rows().dataset), num_items_in_batch=trained)
    for figures in (together, alone):
        for key in [key for key in figures if key.startswith(TOKENS)]:
            del figures[key]
    assert_equal(alone, together)


def isolation(
    model: Any, built: Path, folder: Path, precision: Precision = Precision.fp32
) -> IsolationCheck:
    trainer = sft_trainer(model, built, folder, packed=True)
    return IsolationCheck(
        trainer,
        replace(settings("recipe=tiny").sft, precision=precision),
        rows().dataset[0]["input_ids"],
    )


@pytest.mark.parametrize(("name", "attention"), WAYS)
def test_a_copy_behind_an_example_is_scored_like_it(
    name: str, attention: str, built: Path, tmp_path: Path
) -> None:
    isolation(make(name, attention), built, tmp_path).on_train_begin(None, None, None)


def test_a_copy_is_scored_alike_under_an_adapter_in_bf16_too(built: Path, tmp_path: Path) -> None:
    lora = LoRA(rank=2, alpha=4, target_modules=["all-linear"])
    model = make("llama", "laid out").to(torch.bfloat16)
    model = adapters.attach_new_adapter(model, lora, seed=0)
    isolation(model, built, tmp_path, Precision.bf16).on_train_begin(None, None, None)


def test_an_attention_that_drops_the_mask_is_refused(built: Path, tmp_path: Path) -> None:
    """Check an attention for which transformers makes no mask."""
    AttentionInterface.register("careless", sdpa_attention_forward)
    torch.manual_seed(0)
    model = ARCHITECTURES["llama"]()
    model.set_attn_implementation("careless")
    message = r"sft.packing=true: .*\(careless attention\).* sft.packing=false"
    with pytest.raises(UserError, match=message):
        isolation(model, built, tmp_path).on_train_begin(None, None, None)


@pytest.mark.parametrize("name", ["gemma2", "nemotron", "phimoe"])
def test_attention_that_cannot_be_laid_out_is_left_alone(name: str) -> None:
    """Gemma 2 soft-caps its attention, Nemotron's layers pass no layout on, and Phi-MoE's have their window in a mask
    alone."""
    sizes = {key: size for key, size in SHAPE.items() if key != "head_dim"}
    if name == "gemma2":
        model = ARCHITECTURES[name]()
    elif name == "nemotron":
        model = NemotronForCausalLM(NemotronConfig(**sizes))
    else:
        model = PhimoeForCausalLM(PhimoeConfig(**sizes, num_local_experts=2, sliding_window=8))
    attention = model.config._attn_implementation
    assert not pack_pairs(model)
    assert model.config._attn_implementation == attention


def test_weights_that_deepspeed_divides_are_left_alone() -> None:
    """transformers shards every model that it loads while such a configuration exists."""

    class Configuration:
        def is_zero3(self) -> bool:
            return True

    alive, model = Configuration(), ARCHITECTURES["llama"]()
    deepspeed.set_hf_deepspeed_config(alive)
    assert not pack_pairs(model)
    assert model.config._attn_implementation == "sdpa"
    del alive
    assert pack_pairs(model)


def recurrent_model(vocabulary):
    return MambaForCausalLM(
        MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=vocabulary, state_size=4)
    )


def alibi_model(vocabulary):
    return BloomForCausalLM(
        BloomConfig(
            hidden_size=32, n_layer=2, n_head=4, vocab_size=vocabulary, initializer_range=0.2
        )
    )


@pytest.mark.parametrize(
    "build_model",
    [recurrent_model, alibi_model],
    ids=["recurrent", "alibi"],
)
def test_sft_stops_before_a_step_on_examples_that_see_each_other(
    build_model: Callable[[int], PreTrainedModel], chain: Chain, tmp_path: Path
) -> None:
    """No mask helps: a recurrent state continues into the next example, and distance biases ignore positions."""
    base = shutil.copytree(chain.folder("base"), tmp_path / "base")
    vocabulary = json.loads((base / "model" / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    build_model(vocabulary).save_pretrained(base / "model")
    cfg = replace(settings("recipe=tiny").sft, packing=True, batch_size=1)
    cfg.runtime.micro_batch = 1
    (tmp_path / "out").mkdir()
    out = StageDir(tmp_path / "out", lambda metrics, step: None)
    with pytest.raises(UserError, match=r"sft.packing=true: .*sft.packing=false"):
        sft.run(cfg, {"base": base, "data": chain.folder("data")}, out)


@pytest.mark.parametrize("rows", [6, 5, 1], ids=["pairs", "odd", "one row"])
def test_a_layout_goes_there_and_back(rows: int) -> None:
    ids, mask = (t[:rows] for t in pairs())
    pairs_ = PackedPairs.from_batch(ids, mask)
    assert torch.equal(pairs_.spread(pairs_.pack(ids)), ids)
    assert pairs_.layout.positions.max() == mask.sum(1).max() - 1


def test_what_is_saved_knows_nothing_of_packing(built: Path, tmp_path: Path) -> None:
    model = load_model(next((built / "sft").glob("*/model")))
    pack_pairs(model)
    model.save_pretrained(tmp_path)
    assert packing.ATTENTION not in (tmp_path / "config.json").read_text()
