"""Stage `dpo`: direct preference optimization (arXiv:2305.18290) by TRL's DPOTrainer, its reference stored."""

from pathlib import Path
from typing import Any

from stages.config.blocks.training import DPO
from stages.evaluation.displacement import displacement
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.models.scoring import join_reference
from stages.objectives.dpo import (
    FirstStepCheck,
    StoredReferenceTrainer,
    read_last_figures,
    read_reference,
    read_rows,
    reward_margins,
    trainable_model,
)
from stages.store.records import Pair, PairLogProbs, stream
from stages.store.workspace import StageDir
from stages.training.fit import Fit
from stages.training.trainer import EvalHistory, risen_loss_message


def run(cfg: DPO, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `model/` under the policy's contract, any `adapter/`, and `held_out.json`: each held-out pair's margin.

    Raises:
        UserError: where the policy or a pair's tokens are not what the reference scored, the loss does not start
            where it must, too many pairs are too long, or training diverged.
    """
    contract = load_contract(inputs["policy"] / "model")
    pairs, log_probs = inputs["pairs"] / "pairs.parquet", inputs["reference"] / "logprobs.parquet"
    rows = read_rows(join_reference(stream(pairs, Pair), stream(log_probs, PairLogProbs)), contract, cfg, out)
    held_out = rows.validation

    frozen = inputs.get("frozen", inputs["policy"]) / "model"  # what lies below an adapter that is continued
    fit = Fit(StoredReferenceTrainer, cfg, rows, contract, frozen, out)
    policy = trainable_model(frozen, inputs["policy"] / "adapter", fit.cfg, fit.args.device, out)
    trainer = fit.build_trainer(policy)
    first_step = FirstStepCheck(trainer, inputs, rows.train.ids)
    fit.train(first_step)
    held_out_margins = reward_margins(trainer, read_reference(inputs, held_out.ids))
    if not out.main:
        return {}
    fit.publish(lambda weights: load_model(frozen, weights), held_out_margins)

    figures = first_step.figures | read_last_figures(out.path)
    displacement_warning = displacement(figures, held_out.rows)
    fit.describe(inputs, figures, displacement_warning, risen_loss_message(EvalHistory(trainer), len(held_out), cfg))
    summary = f"{len(rows.train)} pairs × {cfg.epochs:g} epochs, {fit.steps} steps"
    if fit.schedule.left_out:
        summary += f", {fit.schedule.left_out} pairs left out of each epoch in turn"
    if "eval_rewards/accuracies" in figures:
        summary += f"; held-out pair accuracy {figures['eval_rewards/accuracies']:.1%} of {len(held_out)}"
    tokens = rows.train.tokens("prompt_ids", "chosen_ids", "prompt_ids", "rejected_ids")
    dpo_metrics = {
        "held_out": len(held_out),
        "displacement": bool(displacement_warning),
        **figures,
        "summary": summary,
    }
    return fit.metrics(tokens) | dpo_metrics
