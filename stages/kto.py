"""Stage `kto`: Kahneman-Tversky optimization (arXiv:2402.01306) with TRL's KTOTrainer and a stored reference."""

from pathlib import Path
from typing import Any

import numpy as np

from stages.config.blocks.training import KTO
from stages.evaluation.learnt import placements
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.models.packing import pack_pairs
from stages.objectives import kto as objective
from stages.objectives.dpo import read_reference
from stages.store.workspace import StageDir, last_values, read_curves
from stages.training.adapters import apply_adapter
from stages.training.fit import Fit
from stages.training.trainer import EvalHistory, risen_loss_message


def run(cfg: KTO, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `model/` under the policy's contract, any `adapter/`, and `held_out.json`: each held-out completion's
    reward and label.

    Raises:
        UserError: if policy or token ids differ from those that the reference scored, the first loss is not that of
            log-ratio 0, too many completions are too long, or training diverged.
    """
    policy = inputs["policy"] / "model"
    contract = load_contract(policy)
    rows, labels = objective.read_rows(inputs, contract, cfg, out)
    desirable = sum(labels[name] for name in rows.train.ids)
    cfg = objective.with_weights(cfg, desirable, len(rows.train) - desirable)

    fit = Fit(objective.StoredReferenceTrainer, cfg, rows, contract, policy, out)
    model = load_model(policy, cfg.start_weights, fit.args.device)
    if not pack_pairs(model):
        out.warn("this model's attention cannot be packed, so completions are padded.")
    trainer = fit.build_trainer(apply_adapter(model, fit.cfg))
    first_step = objective.FirstStep(trainer, inputs, rows.train.ids)
    fit.train(first_step)
    held_out = objective.rewards(trainer, read_reference(inputs, rows.validation.ids), labels)
    if not out.is_main:
        return {}
    fit.publish(lambda weights: load_model(policy, weights), held_out)

    names = ("rewards/chosen", "rewards/rejected", "rewards/margins", "kl")
    curve = read_curves(out.path)
    figures = first_step.figures | last_values(curve, *names, "eval_loss", *(f"eval_{name}" for name in names))
    fit.describe(inputs, figures, risen_loss_message(EvalHistory(trainer), cfg))
    summary = (
        f"{desirable} desirable and {len(rows.train) - desirable} undesirable completions × {cfg.epochs:g} epochs, "
    )
    summary += f"{fit.steps} steps"
    rewards, kinds = (np.array([row[name] for row in held_out]) for name in ("reward", "desirable"))
    if 0 < kinds.sum() < len(kinds):
        figures["held_out_order"] = float(placements(rewards, kinds).mean())
        summary += f"; of {len(kinds)} held-out ones, a desirable one has the higher reward in "
        summary += f"{figures['held_out_order']:.1%} of comparisons"
    tokens = rows.train.tokens("prompt_ids", "completion_ids", "prompt_ids", "KL_completion_ids")
    weights = {"desirable_weight": cfg.desirable_weight, "undesirable_weight": cfg.undesirable_weight}
    counts = {"desirable": desirable, "undesirable": len(rows.train) - desirable, "held_out": len(held_out)}
    return fit.metrics(tokens) | counts | weights | {**figures, "summary": summary}
