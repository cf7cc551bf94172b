"""Reward models' pairs read once against TRL's padded batch of them, under TRL's own trainer: the same rewards, loss,
metrics and gradients. And a training in micro-batches against TRL's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from stages.config.blocks.training import LoRA
from stages.config.choices import Checkpointing
from stages.models import packing
from stages.models.contract import load_contract
from stages.models.loading import create_reward_model
from stages.models.packing import pack_pairs
from stages.models.scoring import tokenize_pair
from stages.objectives.reward import EXTREMES, PairwiseRewardTrainer, count_shared_prefix, trl_row
from stages.store.records import Pair, load
from stages.store.workspace import StageDir
from stages.training import adapters
from stages.training.arguments import arguments
from stages.training.batches import EpochSchedule
from tests.equality import AGREEMENT, assert_equal, step
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
    """A tiny model whose weights are large enough that what a token sees decides the reward."""
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
    tokenizer: PreTrainedTokenizerBase, folder: Path, family: str, dtype: torch.dtype, adapted: bool = False
) -> list[RewardTrainer]:
    """TRL's trainer over a padded model and over a packed one."""
    made = []
    for packed in (False, True):
        model = scorer(family, len(tokenizer))
        assert not packed or pack_pairs(model)
        if adapted:
            lora = LoRA(rank=4, alpha=8, target_modules=["all-linear"])
            model = adapters.attach_new_adapter(model, lora, 0, "SEQ_CLS")
        args = RewardConfig(
            str(folder), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
            center_rewards_coefficient=0.01,
        )  # fmt: skip
        data = Dataset.from_list(ROWS)
        made.append(RewardTrainer(model.to(dtype), args=args, train_dataset=data, processing_class=tokenizer))
    return made


@pytest.mark.parametrize("devices", [("cpu",), ()], ids=["run by run", "all at once"])
@pytest.mark.parametrize("dtype", AGREEMENT, ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_pairs_read_once_are_rewarded_and_learnt_as_trls(
    family: str,
    dtype: torch.dtype,
    devices: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With margins and a coefficient that centres rewards; gemma3's windows are shorter than the sequences."""
    monkeypatch.setattr(packing, "RUN_BY_RUN_DEVICES", devices)
    padded, packed = trainers(tokenizer, tmp_path, family, dtype)
    read: list[int] = []
    for each in (padded, packed):
        layer = each.model.base_model.layers[0]
        layer.register_forward_pre_hook(lambda module, args: read.append(args[0].shape[:-1].numel()))
    theirs, ours = step(padded, WITH_MARGIN), step(packed, WITH_MARGIN)
    assert_equal(theirs, ours)
    assert {"token/logits", "score.weight", "accuracy", "margin", "mean_reward"} <= ours.keys()
    once = sum(len(r["chosen_ids"]) + len(r["rejected_ids"]) - count_shared_prefix(*r.values()) for r in ROWS)
    assert read == [2 * len(ROWS) * max(len(ids) for r in ROWS for ids in r.values()), once]
    assert step(packed, ROWS)["loss"] != ours["loss"], "TRL takes the margin where it stands in a row"


def test_an_adapter_and_its_head_learn_the_same(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    padded, packed = trainers(tokenizer, tmp_path, "llama", torch.float64, adapted=True)
    theirs, ours = step(padded, ROWS), step(packed, ROWS)
    assert_equal(theirs, ours)
    assert any("lora_B" in name for name in ours) and any("score" in name for name in ours)


def test_micro_batches_follow_the_curve_of_plain_trl(chain: Chain, tmp_path: Path) -> None:
    """Our trainer, packed, in micro-batches by tokens; TRL's, padded, a whole batch at once. The same pairs in one
    order: loss, accuracy and margin of every step, and of an evaluation after the last."""
    policy = chain.folder("sft") / "model"
    contract = load_contract(policy)
    pairs = load(chain.folder("pairs") / "pairs.parquet", Pair)[:12]
    rows = Dataset.from_list([trl_row(tokenize_pair(p, contract), None) for p in pairs])
    cfg = settings("recipe=tiny").reward
    cfg = replace(cfg, epochs=3.0, trainer={"lr_scheduler_type": "constant", "warmup_steps": 0})
    cfg = replace(cfg, runtime=replace(cfg.runtime, token_budget=90, gradient_checkpointing=Checkpointing.none))
    out = StageDir(tmp_path, lambda metrics, at: None)
    turns = EpochSchedule([p.id for p in pairs], cfg.batch_size, cfg.seed, "reward")

    def made(kind: type[RewardTrainer], **own: Any) -> RewardTrainer:
        args = arguments(cfg, out)
        model = create_reward_model(policy, cfg.held, CPU, contract.tokenizer.pad_token_id, cfg.seed)
        data = {"train_dataset": rows, "eval_dataset": rows, "processing_class": contract.tokenizer}
        return kind(model, args=args, **data, **own)

    theirs, ours = made(RewardTrainer), made(PairwiseRewardTrainer, cfg=cfg, out=out, schedule=turns)
    assert pack_pairs(ours.model)
    theirs.args.num_train_epochs = 1  # of three times the rows, in our order
    theirs._get_train_sampler = lambda *_: [row for epoch in range(3) for row in turns.epoch(epoch)]
    curves = []
    for trainer in (theirs, ours):
        trainer.train()
        found = trainer.evaluate()
        steps = [(p["loss"], p["accuracy"], p["margin"]) for p in trainer.state.log_history if "grad_norm" in p]
        curves.append([*steps, (found["eval_loss"], found["eval_accuracy"], found["eval_margin"])])
    assert len(curves[0]) == 10
    for one, other in zip(*curves, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert curves[0][-1][0] < curves[0][0][0], "it learnt"
    logged = {name.removeprefix("eval_") for point in ours.state.log_history for name in point}
    assert "mean_reward" in logged and not logged & {*EXTREMES}
    right = [chosen > rejected for chosen, rejected in ours.rewards([*rows])]
    assert sum(right) / len(right) == pytest.approx(curves[1][-1][1])
