"""Run a training on draws: its prompts, its labeler, the rollouts of its steps, its figures.

The stage of such an objective names its trainer, and nothing else."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer

from stages.config.blocks.draws import Drawing
from stages.config.choices import Adapter, Split
from stages.labelers.labeler import NO_COLUMNS, Pool, validate_judgement
from stages.labelers.making import make_labeler
from stages.labelers.own import relative_question
from stages.models.contract import Contract, load_contract
from stages.models.loading import load_model, read_context_length, resolve_device
from stages.models.rendering import ContractError
from stages.store.records import Example, Judgement, stream
from stages.store.splits import draw_order
from stages.store.user_columns import read_user_columns
from stages.store.workspace import StageDir, last_values, read_curves
from stages.training.adapters import apply_adapter
from stages.training.drawing_trainer import (
    ROW_REWARDS,
    DrawingTrainer,
    dead_steps_message,
)
from stages.training.fit import Fit, SplitRows
from stages.training.replay import Replay
from stages.training.rollout_engine import RolloutEngine
from stages.training.rollouts import Rollout, Rollouts, reward_message
from stages.training.token_rows import PromptRows

HELD_OUT = 128  # held-out prompts at most, which are answered at every evaluation
# of the draws before the first step
FIRST = ("first_prompts", "first_ended", "first_right", "first_contrast")
OF_PAIRS = ("rewards/accuracies", "rewards/margins")
OF_REPLAY = ("replayed", "replay_loss")
CURVES = ("reward", "eval_reward", "eval_pass_rate", "kl", "entropy", "sampler_gap")
CURVES_OF_SOME = (*OF_PAIRS, *OF_REPLAY)


class StepJudge:
    """The labeler of a training as its rollouts ask it. All processes judge at once when they train."""

    def __init__(
        self, cfg: Drawing, inputs: dict[str, Path], prompts: dict[str, Example], out: StageDir
    ):
        label = cfg.scorer
        if label.has_trained_reward_model:  # the reward model that this run trained
            label = label.with_reward_model(str(inputs["reward"] / "model"))
        self.out = out
        self.key = label.own_key
        self.labeler = make_labeler(label, out)
        self.asks_relative = not self.labeler.says_relative
        self.columns = NO_COLUMNS
        if self.labeler.reads_columns:
            self.columns = read_user_columns([inputs["data"]], prompts.keys())
        if "reward_model" in label.names:
            # before the token budget is decided from the memory that is left
            [*self.labeler.judge_rollouts(Pool([], [], columns=self.columns))]

    def judge(
        self, trainer: Trainer, prompts: list[Example], rollouts: list[Rollout]
    ) -> Iterator[Judgement]:
        """Yield the judgements of rollouts, which a user-defined class gives in the form that `stage=label` takes."""
        labeler = self.labeler
        if labeler.own and not rollouts:
            return  # a class of the user's need not expect an empty pool
        pool = Pool(prompts, rollouts, columns=self.columns)
        pool = pool._replace(trainer_state=trainer.state, gather=gather_object)
        prompt_ids = {prompt.id for prompt in prompts}
        judgements = list[Judgement]()
        for judgement in labeler.judge_rollouts(pool):
            if labeler.own:
                validate_judgement(judgement, prompt_ids, f"{self.key}: the labeler {labeler.name}")
            judgements.append(judgement)
            yield judgement
        if self.asks_relative:
            question = relative_question(self.key, labeler.name, judgements)
            self.asks_relative = not question
            if question:
                self.out.inform(question)


def train_on_draws(
    trainer_class: type[DrawingTrainer], cfg: Drawing, inputs: dict[str, Path], out: StageDir
) -> dict[str, Any]:
    """Train by a trainer of this class. Publish `model/` under the policy's contract, any `adapter/`, and
    `held_out.json`: each held-out reward. Raise UserError if too many prompts are too long or completions unscored, or
    training teaches nothing or diverged."""
    policy = inputs["policy"] / "model"
    contract = load_contract(policy)
    context = read_context_length(policy)
    examples = stream(inputs["data"] / "examples.parquet", Example)
    rows, prompts = read_rows(examples, contract, cfg, out, context)
    engine = RolloutEngine(cfg, policy, contract, out) if cfg.sampler == "vllm" else None
    with engine or nullcontext():
        # Engine, reward model and reference come first, so that the token budget is decided from the memory that they leave.
        judge = StepJudge(cfg, inputs, prompts, out)
        reference = None
        # with an adapter, the reference is the policy without it
        if cfg.reads_reference and cfg.adapter is Adapter.none:
            device = resolve_device(cfg.runtime.device)
            reference = trainer_class.load_reference(policy, cfg, device)
        replay = None
        if cfg.replay:
            demonstrations = stream(inputs["replayed"] / "examples.parquet", Example)
            replay = Replay(demonstrations, contract, cfg, context)
        fit = Fit(trainer_class, cfg, rows, contract, policy, out)
        model = trainer_class.load_start(policy, cfg, fit.args.device)
        trainer = fit.build_trainer(apply_adapter(model, fit.cfg))
        if trainer.is_padded:
            out.warn(
                "this model's attention cannot be packed, so completions are padded and each reads its prompt again."
            )
        trainer.reference = reference
        trainer.replay = replay
        trainer.rollouts = Rollouts(
            trainer,
            cfg,
            contract,
            prompts,
            partial(judge.judge, trainer),
            judge.labeler.relative,
            out,
            engine,
        )
        fit.train()
    if not out.is_main:
        return {}
    metrics = publish_trained(fit, trainer, inputs)
    return metrics | {"engine": engine.sampler.engine} if engine else metrics


def publish_trained(
    fit: Fit[Any, Any], trainer: DrawingTrainer, inputs: dict[str, Path]
) -> dict[str, Any]:
    """Publish the trained model with its card and each held-out reward, and return the metrics of the training."""
    cfg = trainer.cfg
    out = trainer.out
    log = trainer.state.log_history
    held_out_rewards = [entry[ROW_REWARDS] for entry in log if ROW_REWARDS in entry]
    reward_by_prompt = list[dict[str, Any]]()
    if held_out_rewards:
        for name, reward in zip(fit.rows.validation.ids, held_out_rewards[-1], strict=True):
            reward_by_prompt.append({"id": name, "reward": reward})
    fit.publish(partial(load_model, fit.start), reward_by_prompt)

    step_entries = [entry for entry in log if "live_groups" in entry]
    curves = read_curves(out.path)
    figures = last_values(curves, *CURVES, *CURVES_OF_SOME)
    warnings = [
        reward_message(step_entries, held_out_rewards, len(fit.rows.validation), cfg),
        dead_steps_message(step_entries, cfg),
    ]
    if trainer.replay:
        warnings.append(trainer.replay.skipped_message)
    fit.describe(inputs, figures, *warnings)
    metrics = fit.metrics(fit.rows.train.tokens("prompt_ids"))
    # the last of the reversed log is the first one
    first_figures = last_values(log[::-1], "reward", "eval_reward")
    for name in ("reward", "eval_reward"):
        if name in figures:
            metrics["summary"] += f"; {name} {first_figures[name]:.3f} → {figures[name]:.3f}"
    completion_tokens = sum(entry["completion_tokens"] * entry["groups"] for entry in step_entries)
    return metrics | {
        "tokens": metrics["tokens"] + round(completion_tokens * cfg.completions),
        **last_values(log, *FIRST),
        "skipped_prompts": sum(entry["groups"] - entry["live_groups"] for entry in step_entries),
        "dead_steps": sum(entry["live_groups"] == 0 for entry in step_entries),
        "held_out": len(reward_by_prompt),
        **figures,
    }


def read_rows(
    examples: Iterable[Example],
    contract: Contract,
    cfg: Drawing,
    out: StageDir,
    context: int | None = None,
) -> tuple[SplitRows[PromptRows], dict[str, Example]]:
    """Return the prompts that fit into `max_length` and the context with their completions, as rows, and the examples
    by id. At most HELD_OUT prompts, drawn by id, are held out."""
    rows = SplitRows(PromptRows, cfg, out, context)
    prompts = dict[str, Example]()
    unchecked = 0
    for example in sorted(examples, key=by_draw):
        is_held_out = example.split == Split.validation and len(rows.validation) < HELD_OUT
        if example.split != Split.preference and not is_held_out:
            continue
        if cfg.scorer.names == ["verifier"] and not example.checks:
            unchecked += 1
            continue
        try:
            ids = contract.prompt(example.messages)
        except ContractError as reason:
            rows.left_out.add(example.id, reason)
            continue
        if not rows.fits(example.id, len(ids) + cfg.max_new_tokens):
            continue
        rows.add(example.split, example.id, {"id": example.id, "prompt_ids": ids}, example.messages)
        prompts[example.id] = example
    rows.settle()
    if unchecked:
        out.inform(
            f"{unchecked} prompts are not used: they have no checks, by which label=verifier scores."
        )
    return rows, prompts


def by_draw(example: Example) -> Any:
    """Return the key by which examples are drawn."""
    return draw_order(example.id)
