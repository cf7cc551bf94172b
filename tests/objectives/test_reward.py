"""Tests of packed pairs in reward training against TRL's padded batch, in TRL's trainer: equal rewards, loss, metrics
and gradients, also in micro-batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import RewardConfig, RewardTrainer

from stages.config.blocks.arguments import RewardArguments
from stages.config.choices import Checkpointing
from stages.models import packing
from stages.models.contract import load_contract
from stages.models.loading import create_reward_model
from stages.models.packing import pack_pairs
from stages.models.scoring import tokenize_pair
from stages.objectives.reward import PairwiseRewardTrainer, trl_row
from stages.store.records import Pair, load
from stages.store.text_units import count_shared_prefix
from stages.store.workspace import StageDir
from stages.training.arguments import training_arguments
from stages.training.batches import EpochSchedule
from tests.equality import (
    DTYPES,
    assert_equal,
    assert_metrics_do_not_depend_on_memory,
    step,
)
from tests.helpers import Chain, settings
from tests.objectives.test_pair_forward import FAMILIES

CPU = torch.device("cpu")
PROMPT = [*range(5, 21)]
ROWS: list[dict[str, Any]] = [
    {"chosen_ids": [*PROMPT, 30, 31, 32], "rejected_ids": [*PROMPT, 33]},
    {"chosen_ids": [*PROMPT[:3], 40, 41], "rejected_ids": [*PROMPT[:3], 40, 42, 43, 44]},
    {"chosen_ids": [7, 8, 9, 10], "rejected_ids": [7, 8]},
    {"chosen_ids": [11, 12], "rejected_ids": [13]},
]
WITH_MARGIN = [{**row, "margin": 0.3 * i} for i, row in enumerate(ROWS)]


@pytest.fixture(scope="module")
def tokenizer(built: Path) -> PreTrainedTokenizerBase:
    return load_contract(next((built / "sft").glob("*/model"))).tokenizer


def scorer(family: str, vocabulary: int) -> PreTrainedModel:
    """Return a tiny model with weights so large that rewards depend strongly on the visible tokens."""
    torch.manual_seed(0)
    config = FAMILIES[family]().config
    config.vocab_size, config.num_labels = vocabulary, 1
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model


def trainers(
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    family: str,
    dtype: torch.dtype,
) -> list[RewardTrainer]:
    """Return TRL's trainer on a padded and on a packed model."""
    trainers = []
    for packed in (False, True):
        model = scorer(family, len(tokenizer))
        assert not packed or pack_pairs(model)
        args = RewardConfig(
            str(folder), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
            center_rewards_coefficient=0.01,
        )  # fmt: skip
        data = Dataset.from_list(ROWS)
        trainers.append(
            RewardTrainer(
                model.to(dtype), args=args, train_dataset=data, processing_class=tokenizer
            )
        )
    return trainers


@pytest.mark.parametrize("devices", [("cpu",), ()], ids=["run by run", "all at once"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_pairs_read_once_are_rewarded_and_learnt_as_trls(
    family: str,
    dtype: torch.dtype,
    devices: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Check with margins and a coefficient that centres rewards; gemma3's windows are shorter than the sequences."""
    monkeypatch.setattr(packing, "RUN_BY_RUN_DEVICES", devices)
    padded, packed = trainers(tokenizer, tmp_path, family, dtype)
    read: list[int] = []
    for each in (padded, packed):
        layer = each.model.base_model.layers[0]
        layer.register_forward_pre_hook(
            lambda module, args: read.append(args[0].shape[:-1].numel())
        )
    padded_step, packed_step = step(padded, WITH_MARGIN), step(packed, WITH_MARGIN)
    assert_equal(padded_step, packed_step)
    assert {
        "token/logits",
        "score.weight",
        "accuracy",
        "margin",
        "mean_reward",
    } <= packed_step.keys()
    once = sum(
        len(r["chosen_ids"]) + len(r["rejected_ids"]) - count_shared_prefix(*r.values())
        for r in ROWS
    )
    assert read == [2 * len(ROWS) * max(len(ids) for r in ROWS for ids in r.values()), once]
    assert step(packed, ROWS)["loss"] != packed_step["loss"], (
        "TRL takes the margin where it stands in a row"
    )


def test_micro_batches_follow_the_curve_of_plain_trl(chain: Chain, tmp_path: Path) -> None:
    """Compare our packed trainer in micro-batches with TRL's padded trainer on whole batches: loss, accuracy and
    margin of every step and of a last evaluation, on the same pairs in one order."""
    policy = chain.folder("sft") / "model"
    contract = load_contract(policy)
    pairs = load(chain.folder("pairs") / "pairs.parquet", Pair)[:12]
    rows = Dataset.from_list([trl_row(tokenize_pair(p, contract), None) for p in pairs])
    cfg = settings("recipe=tiny").reward
    cfg = replace(
        cfg, epochs=3.0, trainer=RewardArguments(lr_scheduler_type="constant", warmup_steps=0)
    )
    cfg = replace(
        cfg,
        runtime=replace(cfg.runtime, token_budget=90, gradient_checkpointing=Checkpointing.none),
    )
    out = StageDir(tmp_path, lambda metrics, at: None)
    turns = EpochSchedule([p.id for p in pairs], cfg.batch_size, cfg.seed, "reward")

    def build_trainer(kind: type[RewardTrainer], **own: Any) -> RewardTrainer:
        args = training_arguments(cfg, out)
        model = create_reward_model(
            policy, cfg.start_weights, CPU, contract.tokenizer.pad_token_id, cfg.seed
        )
        data = {"train_dataset": rows, "eval_dataset": rows, "processing_class": contract.tokenizer}
        return kind(model, args=args, **data, **own)

    trl_trainer, pairwise_trainer = (
        build_trainer(RewardTrainer),
        build_trainer(PairwiseRewardTrainer, cfg=cfg, out=out, schedule=turns),
    )
    assert pack_pairs(pairwise_trainer.model)
    trl_trainer.args.num_train_epochs = 1  # three times the rows, in our order
    trl_trainer._get_train_sampler = lambda *_: [
        row for epoch in range(3) for row in turns.epoch(epoch)
    ]
    curves = []
    step_rows = [*rows]
    metrics = assert_metrics_do_not_depend_on_memory(pairwise_trainer, step_rows, [1, 90, 200])
    assert metrics.keys() >= {"min_reward", "mean_reward", "accuracy", "margin", "num_tokens"}
    for trainer in (trl_trainer, pairwise_trainer):
        trainer.train()
        evaluation = trainer.evaluate()
        steps = [(p["loss"],) for p in trainer.state.log_history if "grad_norm" in p]
        curves.append(
            [
                *steps,
                (evaluation["eval_loss"], evaluation["eval_accuracy"], evaluation["eval_margin"]),
            ]
        )
    assert len(curves[0]) == 10
    for one, other in zip(*curves, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert curves[0][-1][0] < curves[0][0][0], "it learnt"
    right = [chosen > rejected for chosen, rejected in pairwise_trainer.rewards([*rows])]
    assert sum(right) / len(right) == pytest.approx(curves[1][-1][1])
