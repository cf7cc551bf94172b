"""Tests of what is evaluated: the loss that orders models, and margins of many pairs at once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from stages import dpo, sft
from stages.config.blocks.arguments import SFTArguments
from stages.config.choices import Precision
from stages.config.errors import UserError
from stages.objectives.dpo import reward_margins
from stages.store.records import PairLogProbs, load
from stages.store.workspace import StageDir
from stages.training import fit
from tests.helpers import Chain, settings

STAGES = {"sft": sft, "dpo": dpo}
ROLES = {
    "sft": {"base": "base", "data": "data"},
    "dpo": {"policy": "sft", "pairs": "pairs", "reference": "reference"},
}


def ready(name: str, chain: Chain, folder: Path, patch: Any, **changes: Any) -> Trainer:
    """Return a stage's trainer before its first step, with changed weights."""
    trainers = list[Trainer]()

    def caught(trainer: Trainer, *_: Any) -> None:
        trainers.append(trainer)
        raise UserError("ready")

    patch.setattr(fit, "train_with_callbacks", caught)
    folder.mkdir()
    inputs = {role: chain.folder(node) for role, node in ROLES[name].items()}
    cfg = replace(vars(settings("recipe=tiny"))[name], precision=Precision.fp32, **changes)
    with pytest.raises(UserError, match="ready"):
        STAGES[name].run(cfg, inputs, StageDir(folder, lambda metrics, step: None))
    [trainer] = trainers
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return trainer


def test_a_loss_that_is_small_for_improbable_tokens_is_not_evaluated(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `dft`, validation has the loss of `nll`: the mean of -p log p has no order of models."""
    losses = dict[str, float]()
    for loss in ("nll", "dft"):
        trl = SFTArguments(loss_type=loss)
        trainer = ready("sft", chain, tmp_path / loss, monkeypatch, trainer=trl)
        losses[loss] = trainer.evaluate()["eval_loss"]
        assert trainer.args.loss_type == loss, "training keeps its own"
    assert losses["dft"] == losses["nll"]


def test_margins_come_from_forwards_of_many_pairs(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ready("dpo", chain, tmp_path / "dpo", monkeypatch)
    pairs = load(chain.folder("reference") / "logprobs.parquet", PairLogProbs)[:12]
    forwards = list[None]()
    trainer.model.register_forward_hook(lambda *_: forwards.append(None))
    together = reward_margins(trainer, pairs)
    assert len(forwards) < len(pairs)
    alone = [margin for pair in pairs for margin in reward_margins(trainer, [pair])]
    assert [m["id"] for m in together] == [p.id for p in pairs]
    assert [m["margin"] for m in together] == pytest.approx([m["margin"] for m in alone], abs=1e-5)
