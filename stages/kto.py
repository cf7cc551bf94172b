"""Stage `kto`: Kahneman-Tversky optimization (arXiv:2402.01306) of single completions, with a stored reference."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.config.blocks.training import KTO
from stages.evaluation.learnt import placements
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.objectives import kto as objective
from stages.objectives.first_step import FirstStepCheck, read_reference
from stages.store.workspace import StageDir, last_values, read_curves
from stages.training.adapters import apply_adapter
from stages.training.fit import Fit
from stages.training.trainer import risen_loss_message

MEASURED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "kl")
CURVES = (*MEASURED, "eval_loss", *(f"eval_{name}" for name in MEASURED))


def run(cfg: KTO, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `model/` under the policy's contract, any `adapter/`, and `held_out.json`: each held-out completion's
    reward and label.
    Raise UserError if the first step does not agree with the stored reference, too many completions are too long, or
    training diverged."""
    policy = inputs["policy"] / "model"
    contract = load_contract(policy)
    rows, labels = objective.read_rows(inputs, contract, cfg, out)
    desirable = sum(labels[name] for name in rows.train.ids)
    undesirable = len(rows.train) - desirable
    cfg = objective.with_weights(cfg, desirable, undesirable)

    fit = Fit(objective.UnpairedTrainer, cfg, rows, contract, policy, out)
    model = objective.load_start(policy, cfg, fit.args.device, out)
    trainer = fit.build_trainer(apply_adapter(model, fit.cfg))
    starting_loss = partial(objective.starting_loss, trainer)
    first_step = FirstStepCheck(trainer, inputs, rows.train.ids, starting_loss)
    fit.train(first_step)
    held_out = objective.rewards(trainer, read_reference(inputs, rows.validation.ids), labels)
    if not out.is_main:
        return {}
    fit.publish(partial(load_model, policy), held_out)

    figures = {
        **first_step.figures,
        "desirable_weight": cfg.desirable_weight,
        "undesirable_weight": cfg.undesirable_weight,
        **last_values(read_curves(out.path), *CURVES),
    }
    tokens = rows.train.tokens("prompt_ids", "completion_ids", "prompt_ids", "KL_completion_ids")
    metrics = fit.metrics(tokens)
    metrics["summary"] += f"; {desirable} of the completions are desirable"
    rewards = np.array([row["reward"] for row in held_out])
    is_desirable = np.array([row["desirable"] for row in held_out])
    if 0 < is_desirable.sum() < len(held_out):
        figures["held_out_order"] = float(placements(rewards, is_desirable).mean())
        metrics["summary"] += f"; held-out order {figures['held_out_order']:.1%} right"
    fit.describe(inputs, figures, risen_loss_message(trainer, cfg))
    return metrics | {
        "desirable": desirable,
        "undesirable": undesirable,
        "held_out": len(held_out),
        **figures,
    }
