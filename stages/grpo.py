"""Stage `grpo`: group-relative policy optimization (arXiv:2402.03300) on the model's own completions, which `label`
scores."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config.blocks.training import GRPO
from stages.labelers.labeler import Pool, make_labeler
from stages.models.contract import load_contract
from stages.models.loading import load_model, read_context_length, resolve_device
from stages.objectives import grpo as objective
from stages.store.records import Example, Judgement, stream
from stages.store.workspace import StageDir, last_values, read_curves
from stages.training.fit import Fit
from stages.training.rollouts import Rollout, Rollouts


def run(cfg: GRPO, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `model/` under the policy's contract, any `adapter/`, and `held_out.json`: each held-out prompt's reward.

    Raises:
        UserError: if the sampler does not have the trainer's weights, ten steps in a row teach nothing, too many
            prompts are too long or completions unscored, or training diverged.
    """
    policy = inputs["policy"] / "model"
    contract, context = load_contract(policy), read_context_length(policy)
    examples = stream(inputs["data"] / "examples.parquet", Example)
    rows, prompts = objective.read_rows(examples, contract, cfg, out, context)
    label = cfg.label
    if label.by_reward:  # the reward model that this run trained
        label = replace(label, reward_model=replace(label.reward_model, path=str(inputs["reward"] / "model")))
    labeler = make_labeler(label, out)

    def judge(prompts: list[Example], rollouts: list[Rollout]) -> Iterator[Judgement]:
        return labeler.judge_rollouts(Pool(prompts, rollouts))

    device = resolve_device(cfg.runtime.device)
    # The reference is loaded first, so that the token budget is decided from the memory that it leaves.
    reference = objective.scoring_model(policy, cfg, device).requires_grad_(False) if cfg.beta else None
    fit = Fit(objective.GroupTrainer, cfg, rows, contract, policy, out)
    trainer = fit.build_trainer(objective.trainable_model(policy, fit.cfg, fit.args.device))
    trainer.reference, trainer.rollouts = reference, Rollouts(trainer, cfg, contract, prompts, judge, out)
    fit.train()
    if not out.is_main:
        return {}
    history = trainer.state.log_history
    held_out = [entry[objective.ROW_REWARDS] for entry in history if objective.ROW_REWARDS in entry][-1:]
    by_prompt = [{"id": i, "reward": r} for i, r in zip(rows.validation.ids, *held_out, strict=False)]
    fit.publish(lambda weights: load_model(policy, weights), by_prompt)

    steps = [entry for entry in history if "live_groups" in entry]
    dead = sum(entry["live_groups"] == 0 for entry in steps)
    figures = last_values(read_curves(out.path), "reward", "eval_reward", "eval_pass_rate", "kl", "entropy")
    fit.describe(inputs, figures, *objective.warnings(history))
    size = f"{fit.steps} steps of {cfg.batch_size} prompts × {cfg.completions} completions"
    summary = f"{size}, {dead} of them without a group that teaches; reward {steps[0]['reward']:.3f} → "
    summary += f"{steps[-1]['reward']:.3f}"
    if "eval_reward" in figures:
        before = next(entry["eval_reward"] for entry in history if "eval_reward" in entry)
        summary += f", of {len(by_prompt)} held-out prompts {before:.3f} → {figures['eval_reward']:.3f}"
    completed = round(sum(entry["completion_tokens"] * entry["groups"] for entry in steps) * cfg.completions)
    metrics = fit.metrics(rows.train.tokens("prompt_ids")) | {"dead_steps": dead, "held_out": len(by_prompt), **figures}
    return metrics | {"tokens": metrics["tokens"] + completed, "summary": summary}
