"""What all objectives share that learn from draws: completions of the model in training, with rewards.

A row of the training data is a prompt. Before a step, `rollouts` gives the completions of its prompts, a group each.
The objective says what a group teaches (`step_rows`) and what it costs (`compute_loss`). This trainer divides groups
among processes and micro-batches, logs what was drawn, and evaluates by the reward of greedy answers.

π is the policy in training, π_old the one that drew. With `sync_every=1` they are the same in every step. In a pool of
several steps π_old is π before the first of them, and its log-probs are computed then, by the trainer: a sampler's
differ, as its arithmetic does. A loss that is an expectation over the policy's draws takes the factor π/π_old of each
token, without a limit, so that older draws add no bias that a clipped factor has."""

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from stages.config.blocks.draws import Drawing
from stages.config.errors import UserError
from stages.curation.answer_rules import is_repetitive
from stages.evaluation.relative_scores import floors_by_prompt
from stages.store.truncation import MOST
from stages.training.first_draws import FirstDraws
from stages.training.micro_batches import MicroBatches, StepRows
from stages.training.replay import Replay
from stages.training.rollouts import Rollout, Rollouts, describe_step, with_reward
from stages.training.token_rows import Row

FIRST_PROMPTS = 64  # prompts at most that are completed before the first step
MOST_DEAD = 10  # steps in a row in which no group teaches
MOST_GAP = 0.05  # nats per token between the log-probs of an engine and the trainer's
ROW_REWARDS = "row_rewards"  # the key of an evaluation's rewards in the trainer's log
FLOOR = "eval_floor"  # the key of the reward of truncated answers there, if rewards are relative


def ways_to_differ(cfg: Drawing, ended: float) -> str:
    """Return advice to get completions to learn from. `ended`: the share of completions that end."""
    block = cfg.block_of_keys
    keys = f"{block}.completions (now {cfg.completions}) or {block}.temperature (now {cfg.temperature:g})"
    ways = f"Raise {keys}, or use prompts that the model answers rightly now and then."
    if ended <= MOST:
        return f"Only {ended:.0%} of the last ones end: raise {block}.max_new_tokens. {ways}"
    return ways


def dead_steps_message(steps: Sequence[dict[str, Any]], cfg: Drawing) -> str:
    """Return a warning if some of the steps had no completions to learn from, else ''."""
    dead = [step for step in steps if step["live_groups"] == 0]
    if not dead:
        return ""
    count = f"in {len(dead)} of {len(steps)} steps"
    problem = f"{count}, no prompt had completions to learn from, so these steps taught nothing"
    if len(dead) == len(steps):
        problem = f"{problem}: the model is the one before training"
    return f"{cfg.subject}: {problem}. {ways_to_differ(cfg, dead[-1]['ended'])}"


class DrawingTrainer(MicroBatches):
    """A trainer whose rows are prompts. For every step it gets rollouts of its weights from `rollouts`, which is set
    before training, as are the frozen `reference` if the loss reads one and there is no adapter, and any `replay`."""

    cfg: Drawing
    arguments: ClassVar = {"remove_unused_columns": False}
    rollouts: Rollouts
    reference: PreTrainedModel | None = None
    replay: Replay | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._total_train_tokens = 0
        super().__init__(*args, **kwargs)

    @classmethod
    @abstractmethod
    def load_start(cls, policy: Path, cfg: Drawing, device: torch.device) -> PreTrainedModel:
        """Return the SFT model as this trainer reads its rows: the policy before the first step."""

    @classmethod
    def load_reference(cls, policy: Path, cfg: Drawing, device: torch.device) -> PreTrainedModel:
        """Return the SFT model as the frozen reference."""
        return cls.load_start(policy, cfg, device).requires_grad_(False)

    @property
    def reads_old_log_probs(self) -> bool:
        """True if the loss of a pool's later steps needs the log-probs of the weights that drew."""
        return False

    @property
    def learns_from_older_draws(self) -> bool:
        """True if earlier weights drew the completions of this step."""
        return self.rollouts.pool.start < self.state.global_step

    def remember_log_probs(self, groups: Sequence[list[Rollout]]) -> None:
        """Add to completions the log-probs of their tokens by the weights of now, for a loss that reads them."""
        raise NotImplementedError

    def compared(self, group: list[Rollout]) -> list[Rollout]:
        """Return the completions of a group whose rewards this objective compares: those that have one."""
        return with_reward(group)

    @abstractmethod
    def teaches(self, group: list[Rollout]) -> bool:
        """Return whether the rewards of a group's completions say what is better."""

    @abstractmethod
    def step_rows(self, groups: Sequence[list[Rollout]]) -> list[Row]:
        """Return what a step teaches, in all processes, as rows; none if it teaches nothing."""

    @abstractmethod
    def idle_row(self, row: Row) -> Row:
        """Return a row that only keeps a process busy, and teaches nothing."""

    def finish_rows(self, rows: list[Row], _of_step: list[Row]) -> list[Row]:
        """Return the rows of this process with what only the process that trains on them computes."""
        return rows

    @contextmanager
    def reference_model(self) -> Iterator[PreTrainedModel]:
        """Give the SFT model: the frozen copy or, without one, the policy without its adapter."""
        if self.reference:
            yield self.reference
            return
        with self.model.disable_adapter():
            yield self.model

    @abstractmethod
    def count_rows(self, rows: list[Row]) -> None:
        """Count the tokens of a step's rows, in all processes, as trained."""

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        return [*islice(epoch_iterator, num_batches)], None

    def training_step(
        self, model: torch.nn.Module, inputs: StepRows, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Compute the gradients of a step on rollouts of the current weights. A step in which no group teaches has no
        gradients, so that the optimizer changes nothing.
        Raise UserError if MOST_DEAD steps in a row had no group that teaches."""
        if self.state.global_step == 0:
            self.try_first_draws()
        groups = self.draw_step([row["id"] for row in inputs])
        live = self.step_rows(groups)
        loss = torch.zeros((), device=self.args.device)
        if live:
            rows_here = self.finish_rows(self.rows_here(live), live)
            loss = super().training_step(model, StepRows(rows_here), num_items_in_batch)
            if self.rollouts.engine and not self.learns_from_older_draws:
                self.validate_engine_gap(self.summarize("train")["sampler_gap"])
        self.count_rows(live)
        figures = describe_step(groups, self.teaches) | {"num_tokens": self._total_train_tokens}
        self._metrics["train"] |= {name: [value] for name, value in figures.items()}
        counts = [
            entry["live_groups"] for entry in self.state.log_history if "live_groups" in entry
        ][1 - MOST_DEAD :]
        if not live and len(counts) == MOST_DEAD - 1 and not any(counts):
            problem = f"in {MOST_DEAD} steps in a row, no prompt had completions to learn from"
            ways = ways_to_differ(self.cfg, figures["ended"])
            raise UserError(f"{self.cfg.subject}: {problem}, so nothing is learnt. {ways}")
        return loss

    def rows_here(self, rows: list[Row]) -> list[Row]:
        """Return this process's part of a step's rows, or an idle row if it has none."""
        idle = [self.idle_row(row) for row in rows[:1]]
        return rows[self.args.process_index :: self.args.world_size] or idle

    def draw_step(self, ids: Sequence[str]) -> list[list[Rollout]]:
        """Return the groups of the next step in all processes. `ids`: the prompts of this process."""
        later_ids = dict[int, Sequence[str]]()
        remember = None
        if self.cfg.pool_steps != 1:
            for step in range(self.state.global_step + 1, self.rollouts.pool.stop):
                rows = self.schedule.step(step)
                later_ids[step] = self.rollouts.share_of([self.row_ids[i] for i in rows])
            if self.reads_old_log_probs:
                remember = self.remember_log_probs
        return self.rollouts.of_step(ids, later_ids, remember)

    @cached_property
    def row_ids(self) -> list[str]:
        """The ids of the training rows."""
        return [*self.train_dataset["id"]]

    def try_first_draws(self) -> None:
        """Draw completions of some prompts before the first step, and log what they are like. Warn if few prompts teach
        something. Raise UserError if none does."""
        groups = self.rollouts.before_first_step(self.row_ids[:FIRST_PROMPTS])
        first = FirstDraws(groups, self.rollouts.relative, self.compared, self.teaches)
        self.log(first.figures)
        first.require_contrast(self.cfg)
        for message in (first.few_message(self.cfg), first.ending_message(self.cfg)):
            if message:
                self.out.warn(message)

    def validate_engine_gap(self, gap: float) -> None:
        """Raise UserError if the engine's log-probs of the step's tokens are so far from the trainer's that the engine
        had other weights, and forget the step's rollouts."""
        if gap <= MOST_GAP:  # a gap that is not a number is not
            return
        self.rollouts.forget_step()
        problem = f"the engine's log-probs differ from the trainer's by {gap:.2g} nats per token"
        raise UserError(
            f"{self.cfg.block}.sampler=vllm: {problem}, at most {MOST_GAP:g} is allowed. Nothing is published. "
            f"Type the same command again to resume; if it recurs, use {self.cfg.block}.sampler=hf."
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Answer the held-out prompts greedily. Log the mean reward, and the shares that are truncated, have loops and,
        if rewards are absolute, have reward 1 or, behind gates, more."""
        answers = self.rollouts.held_out([*dict.fromkeys(row["id"] for row in self.eval_dataset)])
        rewards = [answer.reward for answer in answers]
        scored = [reward for reward in rewards if reward is not None]
        truncated = sum(answer.finish_reason != "stop" for answer in answers)
        metrics: dict[str, Any] = {
            ROW_REWARDS: rewards,
            "eval_truncated": truncated / len(answers),
        }
        if self.rollouts.relative:
            metrics[FLOOR] = self.held_out_floor(scored)
            scored += [metrics[FLOOR]] * truncated
        else:
            metrics["eval_pass_rate"] = fmean([reward >= 1 for reward in scored] or [math.nan])
        metrics["eval_reward"] = fmean(scored or [math.nan])
        metrics["eval_loops"] = fmean(is_repetitive(answer.text) for answer in answers)
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def held_out_floor(self, scored: list[float]) -> float:
        """Return the relative reward of a truncated answer to a held-out prompt: the floor of the first evaluation's
        rewards, for all evaluations. With a floor of its own, an evaluation could gain by truncating bad answers."""
        floors = [entry[FLOOR] for entry in self.state.log_history if FLOOR in entry]
        first = next(filter(math.isfinite, floors), None)
        if first is not None:
            return first
        return floors_by_prompt({"": scored}, True).get("", math.nan)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's metrics. A step without live groups has no gradient, so no norm of it."""
        if "loss" in logs:
            logs |= self.summarize("train")
            self.forget_metrics("train")
        if logs.get("live_groups") == 0:
            logs.pop("grad_norm", None)
        super().log(logs, start_time)
