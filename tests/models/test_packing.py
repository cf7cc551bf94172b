"""Tests of packed examples: they train like separate examples, or an error stops the training."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
    Qwen3_5TextConfig,
)
from transformers.integrations import deepspeed
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl import SFTConfig, SFTTrainer

from stages import sft
from stages.config.blocks.training import LoRA
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
from tests.equality import AGREEMENT, TOKENS, assert_equal, step
from tests.helpers import Chain, settings
from tests.samplers.test_samplers import ARCHITECTURES, SHAPE

WIDTH = 30
LENGTHS = [20, 30, 14, 22, 13, 14]  # three pairs: chosen, then rejected
SHARED = [12, 12, 14]  # the number of tokens that a pair shares; the last two are the same sequence
# Two kinds of attention within the examples of a row: by a RunLayout, or by transformers' dense mask from positions.
WAYS = [(name, "laid out") for name in ARCHITECTURES if name != "gemma2"]
WAYS += [(name, dense) for name in ("llama", "gemma3") for dense in ("sdpa", "eager")] + [
    ("gemma2", "eager")
]


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


@pytest.mark.parametrize("dtype", AGREEMENT, ids=str)
@pytest.mark.parametrize(("name", "attention"), WAYS)
def test_examples_teach_the_same_packed_and_alone(
    name: str, attention: str, dtype: torch.dtype, built: Path, tmp_path: Path
) -> None:
    def trainer(packed: bool) -> SFTTrainer:
        torch.manual_seed(0)
        model = ARCHITECTURES[name]().to(dtype)
        if attention != "laid out":
            model.set_attn_implementation(attention)
        elif packed:
            assert pack_segments(model)
        return sft_trainer(model, built, tmp_path, packed)

    trained, bins = torch.tensor(sum(rows().trained_counts)), rows()
    bins.pack(2 * WIDTH, batch_size=1)
    assert 1 < len(bins) < len(rows())
    together = step(trainer(packed=True), list(bins.dataset), num_items_in_batch=trained)
    alone = step(trainer(packed=False), list(rows().dataset), num_items_in_batch=trained)
    assert_equal(
        *({k: v for k, v in each.items() if not k.startswith(TOKENS)} for each in (alone, together))
    )


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
    torch.manual_seed(0)
    model = ARCHITECTURES[name]()
    if attention == "laid out":
        assert pack_segments(model)
    else:
        model.set_attn_implementation(attention)
    isolation(model, built, tmp_path).on_train_begin(None, None, None)


def test_padding_behind_a_copy_is_not_compared(built: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check = isolation(ARCHITECTURES["llama"](), built, tmp_path)
    check.trainer.data_collator.pad_to_multiple_of = 64
    assert check.measure()[0] < 1e-5


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("attention", ["laid out", "sdpa"])
def test_a_copy_is_scored_alike_in_bf16_too(
    attention: str, adapter: bool, built: Path, tmp_path: Path
) -> None:
    """Check under autocast; with an adapter, over bf16 weights."""
    torch.manual_seed(0)
    model = ARCHITECTURES["llama"]()
    if attention == "laid out":
        assert pack_segments(model)
    if adapter:
        lora = LoRA(rank=2, alpha=4, target_modules=["all-linear"])
        model = adapters.attach_new_adapter(model.to(torch.bfloat16), lora, seed=0)
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


def test_a_mask_of_ones_is_refused(built: Path, tmp_path: Path) -> None:
    """With a mask, transformers ignores positions: the whole row would be one example."""
    torch.manual_seed(0)
    check = isolation(ARCHITECTURES["llama"](), built, tmp_path)
    check.on_train_begin(None, None, None)
    check.trainer.data_collator.padding_free = False
    check.trainer.data_collator.return_position_ids = True
    with pytest.raises(UserError, match=r"sdpa attention"):
        check.on_train_begin(None, None, None)


@pytest.mark.parametrize("pack", [pack_pairs, pack_segments])
def test_attention_that_cannot_be_laid_out_is_left_alone(
    pack: Callable[[PreTrainedModel], bool],
) -> None:
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


def convolved_model(vocabulary):
    """transformers itself refuses packed rows here, without the package of the convolution's kernel."""
    sizes = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    sizes |= {"linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
    return AutoModelForCausalLM.from_config(
        Qwen3_5TextConfig(**SHAPE | {"num_hidden_layers": 2, "vocab_size": vocabulary}, **sizes)
    )


@pytest.mark.parametrize(
    "build_model",
    [recurrent_model, alibi_model, convolved_model],
    ids=["recurrent", "alibi", "convolved"],
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


def joined(packing_: PackedPairs, packed: torch.Tensor) -> torch.Tensor:
    """Return the batch of one row, put together from slices: what `spread` must return to the bit."""
    runs = torch.split(packed[0], packing_.layout.lengths)
    shared = packing_.layout.prefixes[1::2]
    rejected = [
        torch.cat([row[:n], tail])
        for row, tail, n in zip(runs[::2], runs[1::2], shared, strict=True)
    ]
    sequences = pad_sequence([*runs[::2], *rejected], batch_first=True)
    return pad(sequences, (0, 0) * (sequences.dim() - 2) + (0, packing_.width - sequences.shape[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(), (5,)])
def test_spreading_a_row_has_the_output_and_gradient_of_joined_slices(
    sizes: tuple[int, ...], dtype: torch.dtype
) -> None:
    pairs_ = PackedPairs.from_batch(*pairs())
    draw = torch.Generator().manual_seed(0)
    tokens = sum(pairs_.layout.lengths)
    row = torch.randn(1, tokens, *sizes, generator=draw).to(dtype).requires_grad_()
    gradient = torch.randn(6, WIDTH, *sizes, generator=draw).to(dtype)
    outputs = pairs_.spread(row), joined(pairs_, row)
    assert torch.equal(*outputs)
    assert torch.equal(*(torch.autograd.grad(output, row, gradient)[0] for output in outputs))


def test_the_gradient_of_spreading_a_row_takes_time_in_proportion_to_its_tokens() -> None:
    """Count elements of tensors that the backward writes: joined slices copy the whole gradient once per slice."""

    def written(count: int) -> int:
        ids = torch.arange(3, 13).repeat(2 * count, 1)
        ids[count:, 6:] += 1
        pairs_ = PackedPairs.from_batch(ids, torch.ones_like(ids))
        row = torch.zeros(1, sum(pairs_.layout.lengths), 4, requires_grad=True)
        output = pairs_.spread(row)
        with Written() as mode:
            output.sum().backward()
        return mode.elements

    assert written(40) <= 11 * written(4)


class Written(TorchDispatchMode):
    """Counts the elements of all results of operators."""

    elements = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        self.elements += sum(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))
        return result


def test_what_is_saved_knows_nothing_of_packing(built: Path, tmp_path: Path) -> None:
    model = load_model(next((built / "sft").glob("*/model")))
    pack_pairs(model)
    model.save_pretrained(tmp_path)
    assert packing.ATTENTION not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(("window", "packs"), [(8, False), (None, True)])
def test_layers_that_have_their_window_in_a_mask_alone_are_left_alone(
    window: int | None, packs: bool
) -> None:
    sizes = {k: v for k, v in SHAPE.items() if k != "head_dim"}
    model = PhimoeForCausalLM(PhimoeConfig(**sizes, num_local_experts=2, sliding_window=window))
    assert pack_pairs(model) is packs
