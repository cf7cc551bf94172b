"""Stage `reward`: train a model that scores completions of a prompt, from the SFT model, with TRL's RewardTrainer."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stages.config.blocks.training import Reward
from stages.evaluation import learnt_scores
from stages.models.contract import load_contract
from stages.models.loading import create_reward_model, read_context_length
from stages.objectives import reward
from stages.store.records import Pair, stream
from stages.store.workspace import StageDir, last_values, read_curves
from stages.training.fit import Fit
from stages.training.trainer import risen_loss_message


def run(cfg: Reward, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `model/` for sequence classification with the policy's contract, any `adapter/`, and `held_out.json`
    with rewards. Raise UserError if too many pairs are dropped, or lack a margin to train on, or training diverges."""
    policy = inputs["policy"] / "model"
    contract = load_contract(policy)
    pairs = stream(inputs["pairs"] / "pairs.parquet", Pair)
    rows = reward.read_rows(pairs, contract, cfg, out, read_context_length(policy))

    fit = Fit(reward.PairwiseRewardTrainer, cfg, rows, contract, policy, out)
    trainer = fit.build_trainer(
        reward.trainable_model(policy, contract, fit.cfg, fit.args.device, out)
    )
    fit.train()
    rewards = trainer.rewards(rows.validation.rows)
    if not out.is_main:
        return {}
    held_out = reward.score_held_out(inputs, rows.validation, rewards)
    create = partial(
        create_reward_model,
        policy,
        device=torch.device("cpu"),
        pad=contract.tokenizer.pad_token_id,
        seed=cfg.seed,
    )
    fit.publish(create, [asdict(pair) for pair in held_out])

    learnt = learnt_scores.figures(held_out) if held_out else {}
    figures = last_values(read_curves(out.path), "loss", "eval_loss", "eval_margin")
    block = "reward.pairs" if cfg.source.path else "pairs"
    warnings = reward.held_out_warnings(learnt, len(held_out), block)
    warnings.append(risen_loss_message(trainer, cfg))
    metrics = fit.metrics(rows.train.tokens("chosen_ids", "rejected_ids"))
    described = dict(figures)
    if learnt:
        accuracy = learnt["accuracy"]["mean"]
        described["held-out accuracy"] = accuracy
        metrics["summary"] += f"; {accuracy:.1%} of {len(held_out)} held-out pairs right"
    fit.describe(inputs, described, *warnings)
    return metrics | {"held_out": len(held_out), **figures, **learnt}
