"""Stage `dpo`: direct preference optimization (arXiv:2305.18290) with a stored reference, or SimPO without one."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.config.blocks.training import DPO
from stages.config.choices import Adapter, Weights
from stages.evaluation.diagnosis.effects import displacement
from stages.models.contract import Contract, load_contract
from stages.models.loading import load_model
from stages.objectives import dpo as objective
from stages.objectives.first_step import FirstStepCheck
from stages.objectives.pair_losses import OwnLossTrainer, ReferenceFreeTrainer
from stages.objectives.sft import load_start
from stages.store.workspace import StageDir, last_values, read_curves
from stages.training.fit import Fit
from stages.training.own_loss import load_own_loss
from stages.training.trainer import risen_loss_message

MEASURED = ("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
CURVES = (*MEASURED, "eval_loss", *(f"eval_{name}" for name in MEASURED))


def run(cfg: DPO, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `model/` with the policy's contract, any `adapter/`, and `held_out.json`: each held-out pair's margin.
    Raise UserError if the first step does not agree with the stored reference, too many pairs are too long, or training
    diverged."""
    contract = load_contract(inputs["policy"] / "model")
    rows = objective.read_rows(inputs, contract, cfg, out)
    held_out = rows.validation

    # the weights under a continued adapter
    frozen = inputs.get("frozen", inputs["policy"]) / "model"
    # before the model is loaded, as it measures the memory that is free
    fit = Fit(trainer_class(cfg), cfg, rows, contract, frozen, out)
    load_frozen = partial(load_frozen_weights, frozen, contract, cfg)
    model = load_frozen(cfg.start_weights, fit.args.device)
    policy = objective.trainable_model(model, inputs["policy"] / "adapter", fit.cfg, out)
    trainer = fit.build_trainer(policy)
    if isinstance(trainer, OwnLossTrainer):
        trainer.own_loss = load_own_loss(cfg.own, cfg.own_key, out.path)

    def starting_loss(_pairs: int) -> float | None:
        return objective.starting_loss(cfg)

    first_step_checks = []
    if not cfg.reference_free:
        first_step_checks.append(FirstStepCheck(trainer, inputs, rows.train.ids, starting_loss))
    fit.train(*first_step_checks)
    margins = objective.reward_margins(trainer, objective.read_held_out(inputs, held_out))
    if not out.is_main:
        return {}
    fit.publish(load_frozen, margins)

    figures = last_values(read_curves(out.path), *CURVES)
    displacement_warning = ""
    if first_step_checks:
        figures = first_step_checks[0].figures | figures
        displacement_warning = displacement(figures, held_out.rows)
    fit.describe(inputs, figures, displacement_warning, risen_loss_message(trainer, cfg))
    # the shared forward reads a pair's prompt once
    prompt_columns = ["prompt_ids"]
    if trainer.is_padded:
        prompt_columns *= 2
    metrics = fit.metrics(rows.train.tokens(*prompt_columns, "chosen_ids", "rejected_ids"))
    if "eval_rewards/accuracies" in figures:
        metrics["summary"] += f"; held-out pair accuracy {figures['eval_rewards/accuracies']:.1%}"
    return metrics | {
        "held_out": len(held_out),
        "displacement": bool(displacement_warning),
        **figures,
    }


def trainer_class(cfg: DPO) -> type[objective.PairTrainer]:
    """Return the class of the trainer that has the losses of this block."""
    if cfg.own:
        return OwnLossTrainer
    return ReferenceFreeTrainer if cfg.reference_free else objective.StoredReferenceTrainer


def load_frozen_weights(
    folder: Path, contract: Contract, cfg: DPO, weights: Weights, device: torch.device | None = None
) -> PreTrainedModel:
    """Return the policy, or under a continued adapter the base model as SFT started from it."""
    if cfg.adapter is Adapter.continued:
        return load_start(folder, contract, cfg, weights, device)
    return load_model(folder, weights, device)
