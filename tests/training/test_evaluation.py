"""Tests of evaluation: one forward reads many rows, with the losses and metrics of rows evaluated one by one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from stages import dpo, sft
from stages.config.blocks.arguments import DPOArguments, SFTArguments
from stages.config.choices import Adapter, Forward, Precision
from stages.config.errors import UserError
from stages.objectives.dpo import reward_margins
from stages.store.records import PairLogProbs, load
from stages.store.workspace import StageDir
from stages.training import fit
from stages.training.micro_batches import MicroBatches
from tests.helpers import Chain, settings

STAGES = {"sft": sft, "dpo": dpo}


def inputs_of(name: str, chain: Chain) -> dict[str, Path]:
    settings = {
        "sft": {"base": "base", "data": "data"},
        "dpo": {"policy": "sft", "pairs": "pairs", "reference": "reference"},
    }
    return {role: chain.folder(node) for role, node in settings[name].items()}


def ready(
    name: str, changes: dict[str, Any], micro: int | str, chain: Chain, folder: Path, patch: Any
) -> Trainer:
    """Return a stage's trainer before its first step, with changed weights."""
    trainers: list[Trainer] = []

    def caught(trainer: Trainer, *_: Any) -> None:
        trainers.append(trainer)
        raise UserError("ready")

    patch.setattr(fit, "train_with_callbacks", caught)
    cfg = vars(settings("recipe=tiny"))[name]
    cfg = replace(
        cfg, precision=Precision.fp32, runtime=replace(cfg.runtime, micro_batch=micro), **changes
    )
    with pytest.raises(UserError, match="ready"):
        STAGES[name].run(cfg, inputs_of(name, chain), StageDir(folder, lambda metrics, step: None))
    [trainer] = trainers
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return trainer


def evaluated(trainer: Trainer) -> tuple[dict[str, Any], int]:
    """Return the logged figures, and the number of forwards."""
    forwards: list[None] = []
    counting = trainer.model.register_forward_hook(lambda *_: forwards.append(None))
    trainer.evaluate()
    counting.remove()
    logged = trainer.state.log_history[-1]
    return {k: v for k, v in logged.items() if not k.endswith(("time", "per_second"))}, len(
        forwards
    )


@pytest.mark.parametrize(
    ("name", "micro", "changes"),
    [
        ("sft", "auto", {"packing": False}),
        ("sft", 2, {"packing": True}),
        ("sft", "auto", {"packing": True, "adapter": Adapter.lora}),
        (
            "sft",
            2,
            {
                "packing": False,
                "trainer": SFTArguments(loss_type="dft", extra={"pad_to_multiple_of": 8}),
            },
        ),
        (
            "dpo",
            2,
            {
                "forward": Forward.shared_prefix,
                "loss_type": ["sigmoid", "sft"],
                "loss_weights": [1.0, 0.5],
            },
        ),
        (
            "dpo",
            "auto",
            {
                "forward": Forward.padded,
                "trainer": DPOArguments(ld_alpha=0.3, extra={"pad_to_multiple_of": 8}),
            },
        ),
        (
            "dpo",
            "auto",
            {
                "forward": Forward.shared_prefix,
                "adapter": Adapter.lora,
                "trainer": DPOArguments(use_weighting=True),
            },
        ),
    ],
)
def test_rows_evaluated_together_have_the_losses_and_metrics_they_have_alone(
    name: str,
    changes: dict[str, Any],
    micro: int | str,
    chain: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = ready(name, changes, micro, chain, tmp_path, monkeypatch)
    together, forwards = evaluated(trainer)
    monkeypatch.delattr(MicroBatches, "prediction_step")
    alone, each = evaluated(trainer)
    rows = len(alone["row_losses"])
    assert len({*alone["row_losses"]}) > rows / 2, (
        "rows that could be told apart if they were confused"
    )
    assert forwards < each == rows
    assert together.keys() == alone.keys()
    for figure, value in alone.items():
        assert together[figure] == pytest.approx(value, abs=1e-5, rel=1e-5), figure


def test_a_loss_that_is_small_for_improbable_tokens_is_not_evaluated(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `dft`, validation has the loss of `nll`: the mean of -p log p has no order of models."""
    losses = {}
    for loss in ("nll", "dft"):
        (tmp_path / loss).mkdir()
        trainer = ready(
            "sft",
            {"trainer": SFTArguments(loss_type=loss)},
            "auto",
            chain,
            tmp_path / loss,
            monkeypatch,
        )
        losses[loss] = evaluated(trainer)[0]["row_losses"]
        assert trainer.args.loss_type == loss, "training keeps its own"
    assert losses["dft"] == losses["nll"]


def test_losses_that_need_a_forward_of_their_own_get_one(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label smoothing needs logits, which a forward of many rows does not store."""
    smoothed = {"trainer": SFTArguments(label_smoothing_factor=0.1)}
    together, _ = evaluated(trainer := ready("sft", smoothed, "auto", chain, tmp_path, monkeypatch))
    monkeypatch.delattr(MicroBatches, "prediction_step")
    assert evaluated(trainer)[0] == together


def test_margins_come_from_forwards_of_many_pairs(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = ready("dpo", {}, "auto", chain, tmp_path, monkeypatch)
    pairs = load(chain.folder("reference") / "logprobs.parquet", PairLogProbs)[:12]
    forwards: list[None] = []
    trainer.model.register_forward_hook(lambda *_: forwards.append(None))
    together = reward_margins(trainer, pairs)
    assert len(forwards) < len(pairs)
    alone = [margin for pair in pairs for margin in reward_margins(trainer, [pair])]
    assert [m["id"] for m in together] == [p.id for p in pairs]
    assert [m["margin"] for m in together] == pytest.approx([m["margin"] for m in alone], abs=1e-5)
