"""Tests of packed pairs (prompt, chosen, rejected) against TRL's padded batch, in TRL's trainer: equal log-probs,
loss, metrics and gradients."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from trl import DPOConfig, DPOTrainer

from stages.config.blocks.arguments import DPOArguments
from stages.config.choices import LOSS_TYPES, Checkpointing
from stages.models import packing
from stages.models.contract import load_contract
from stages.models.packing import pack_pairs
from stages.training.budget import enable_checkpointing
from tests.equality import DTYPES, assert_equal, step
from tests.flash_reference import flash_attention_on
from tests.helpers import Chain
from tests.samplers.test_samplers import ARCHITECTURES, SHAPE
from tests.stages.test_dpo import block
from tests.stages.test_dpo import trainers as plain_and_stored

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
EXPERTS["experts_implementation"] = "eager"  # grouped matrix products do not support float64
FAMILIES = {name: build for name, build in ARCHITECTURES.items() if name != "gemma2"}
FAMILIES["qwen3_moe"] = lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **EXPERTS))
# The value heads of this model are narrower than its query heads.
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
LATENT |= {"num_key_value_heads": 4, "first_k_dense_replace": 2}
FAMILIES["deepseek_v3"] = lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**{**SHAPE, **LATENT}))
LOSSES: dict[str, dict[str, Any]] = {
    **{loss: {"loss_type": [loss]} for loss in LOSS_TYPES},
    "exo_pair": {"loss_type": ["exo_pair"], "label_smoothing": 1e-3},
    "smoothed": {"loss_type": ["robust"], "label_smoothing": 0.1},
    "ld_alpha": {"ld_alpha": 0.3},
    "wpo": {"use_weighting": True},
    "forward_kl": {"f_divergence_type": "forward_kl"},
    "js_divergence": {"f_divergence_type": "js_divergence"},
    "alpha_divergence": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
    "nll_beside": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
}
MIXTURE: dict[str, Any] = {
    "loss_type": ["apo_zero", "bco_pair", "sft"],
    "loss_weights": [0.8, 0.2, 1.0],
    "ld_alpha": 0.3,
}
ASKED = [
    "Is a kite an animal, a fruit or a tool?",
    "Positive or negative? One word: I love the old garden.",
]
ANSWERED = [
    "It is a tool, and in the hands of a child a toy.",
    "A tool.",
    "positive",
    "Negative, or is it not?",
]

Row = dict[str, list[int]]


@pytest.fixture(scope="module")
def tokenizer(built: Path) -> PreTrainedTokenizerBase:
    return load_contract(next((built / "sft").glob("*/model"))).tokenizer


def policy(family: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Return a tiny model with weights so large that logits depend strongly on the visible tokens."""
    torch.manual_seed(seed)
    model = FAMILIES[family]()
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model


def trainers(
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    family: str = "llama",
    dtype: torch.dtype = torch.float64,
    **arguments: Any,
) -> tuple[DPOTrainer, DPOTrainer]:
    """Return TRL's trainer on a padded and on a packed model, with equal weights, reference and pairs."""
    texts = [
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for question, chosen, rejected in zip(ASKED, ANSWERED[::2], ANSWERED[1::2], strict=True)
    ]

    def trainer(packed: bool) -> DPOTrainer:
        model, reference = policy(family, tokenizer, seed=0), policy(family, tokenizer, seed=1)
        assert not packed or (pack_pairs(model) and pack_pairs(reference))
        args = DPOConfig(
            str(folder),
            use_cpu=True,
            bf16=False,
            report_to="none",
            gradient_checkpointing=False,
            **arguments,
        )
        return DPOTrainer(
            model.to(dtype),
            ref_model=reference.to(dtype),
            args=args,
            train_dataset=Dataset.from_list(texts),
            processing_class=tokenizer,
        )

    return trainer(packed=False), trainer(packed=True)


def row(prompt: list[int], chosen: list[int], rejected: list[int]) -> Row:
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def tokenised(trainer: DPOTrainer) -> list[Row]:
    """Return the pairs as TRL tokenised them."""
    return [
        {name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
        for row in trainer.train_dataset
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_of_trl_is_the_padded_one(
    loss: str, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    if loss == "alpha_divergence":
        dtype = torch.float32  # TRL clamps it by a table without float64
    padded, packed = trainers(tokenizer, tmp_path, dtype=dtype, **LOSSES[loss])
    padded_step, packed_step = (step(t, tokenised(padded)) for t in (padded, packed))
    assert_equal(padded_step, packed_step)
    assert {
        "token/log_probs",
        "token/entropy",
        "entropy",
        "logits/chosen",
        "rewards/margins",
        "mean_token_accuracy",
    } <= packed_step.keys()


@pytest.mark.parametrize("way", ["run by run", "padded", "varlen"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_models_reads_each_token_once_and_learns_the_same(
    family: str,
    dtype: torch.dtype,
    way: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Check a mixture of losses, and the router's loss of a mixture of experts, with windows shorter than the
    sequences, as on a CPU and as on other devices."""
    if way != "run by run":
        monkeypatch.setattr(packing, "RUN_BY_RUN_DEVICES", ())
    padded, packed = trainers(tokenizer, tmp_path, family, dtype, **MIXTURE)
    read: list[int] = []
    for each in (padded, packed):
        first = each.model.model.layers[0]
        first.register_forward_pre_hook(
            lambda module, args: read.append(args[0].shape[:-1].numel())
        )
    rows = tokenised(padded)
    with flash_attention_on("CPU") if way == "varlen" else nullcontext():
        assert_equal(step(padded, rows), step(packed, rows))
    width = max(
        len(r["prompt_ids"]) + len(r[side]) for r in rows for side in ("chosen_ids", "rejected_ids")
    )
    assert (padded.model.config.to_dict().get("sliding_window") or 0) < width
    assert read == [2 * len(rows) * width, sum(len(ids) for r in rows for ids in r.values())]


@pytest.mark.parametrize("kind", [Checkpointing.selective, Checkpointing.full])
def test_gradient_checkpointing_computes_the_layers_again_and_the_same(
    kind: Checkpointing, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """In bf16, and equal to the bit."""
    _, packed = trainers(tokenizer, tmp_path, "gemma3", torch.float32, **MIXTURE)
    rows = tokenised(packed)
    runs = list[int]()
    packed.model.model.layers[0].mlp.register_forward_pre_hook(
        lambda module, args: runs.append(len(runs))
    )
    # accelerate also leaves the backward outside autocast
    packed.model.forward = torch.autocast("cpu", torch.bfloat16)(packed.model.forward)
    once = step(packed, rows)
    assert len(runs) == 1
    enable_checkpointing(packed.model, kind)
    again = step(packed, rows)
    assert len(runs) == 3
    del once["num_tokens"]
    assert all(torch.equal(value, again[name]) for name, value in once.items())


def test_fifty_steps_follow_the_curve_of_plain_trl(chain: Chain, tmp_path: Path) -> None:
    """Compare our packed trainer on stored log-probs with TRL's padded trainer and reference model, on the same pairs
    in the same order. Rounding accumulates over the steps, but stays below 1e-5 after 50."""
    inputs = {
        "policy": chain.folder("sft"),
        "pairs": chain.folder("pairs"),
        "reference": chain.folder("reference"),
    }
    steady = DPOArguments(lr_scheduler_type="constant", warmup_steps=0)
    cfg = block(epochs=25.0, learning_rate=1e-3, batch_size=4, micro=4, trainer=steady)
    plain, stored = plain_and_stored(inputs, cfg, tmp_path)
    assert pack_pairs(stored.model)
    # without the newline after the end of turn
    plain.train_dataset = Dataset.from_list(tokenised(stored))
    curves = []
    for trainer in (plain, stored):
        trainer.train()
        curves.append([point["loss"] for point in trainer.state.log_history if "loss" in point])
    assert len(curves[0]) == 50
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert curves[0][0] == pytest.approx(math.log(2), abs=1e-5)
    assert curves[0][-1] < 0.5 * curves[0][0], "it learnt"
