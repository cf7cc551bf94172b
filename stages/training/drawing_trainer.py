"""What all objectives share that learn from draws: completions of the model in training, with rewards.

A row of the training data is a prompt. Before a step, `rollouts` gives the completions of its prompts, a group each.
The objective says what a group teaches (`step_rows`) and what it costs (`loss_of_draws`). This trainer divides groups
among processes and micro-batches, logs what was drawn, and evaluates by the reward of greedy answers.

π is the policy in training, π_old the one that drew. With `sync_every=1` they are the same in every step. In a pool of
several steps π_old is π before the first of them, and its log-probs are computed then, by the trainer: a sampler's
differ, as its arithmetic does. A loss that is an expectation over the policy's draws takes the factor π/π_old of each
token, without a limit, so that older draws add no bias that a clipped factor has."""

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property, wraps
from itertools import islice
from pathlib import Path
from statistics import fmean
from types import MethodType
from typing import Any, ClassVar, NamedTuple

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel
from trl.trainer import add_fused_lm_head

from stages.config.blocks.training import Drawing
from stages.config.errors import UserError
from stages.curation.answer_rules import is_repetitive
from stages.evaluation.relative_scores import floors_by_prompt
from stages.models import lm_head
from stages.models.loading import load_model
from stages.models.packing import pack_groups, read_groups, send_batch
from stages.models.scoring import autocast
from stages.store.truncation import MOST
from stages.training.first_draws import FirstDraws
from stages.training.micro_batches import Batch, MicroBatches, StepRows
from stages.training.replay import REPLAYED, Replay, as_draw
from stages.training.rollouts import Rollout, Rollouts, describe_step
from stages.training.token_rows import Row

FIRST_PROMPTS = 64  # prompts at most that are completed before the first step
MOST_DEAD = 10  # steps in a row in which no group teaches
MOST_GAP = 0.05  # nats per token between the log-probs of an engine and the trainer's
ROW_REWARDS = "row_rewards"  # the key of an evaluation's rewards in the trainer's log
FLOOR = "eval_floor"  # the key of the reward of truncated answers there, if rewards are relative


class Scored(NamedTuple):
    """A completion, its advantage, and each of its tokens' share in the step's loss."""

    draw: Rollout
    advantage: float
    share: float

    @property
    def token_ids(self) -> list[int]:
        return self.draw.token_ids or []


def load_start(policy: Path, cfg: Drawing, device: torch.device) -> PreTrainedModel:
    """Return the SFT model as it reads rows of groups: the policy before the first step, or the frozen reference."""
    model = load_model(policy, cfg.start_weights, device)
    read_groups(model)
    lm_head.install_cpu_head()
    plain_forward = model.forward
    add_fused_lm_head(model, cfg.temperature, outputs=("log_probs", "entropy"))
    if cfg.replay and cfg.temperature != 1:
        add_head_at_one(model, plain_forward)
    return model


def add_head_at_one(model: PreTrainedModel, plain_forward: Any) -> None:
    """Let the model score replayed rows at temperature 1, as SFT does, and draws at theirs."""
    of_draws = model.forward.__func__
    model.forward = plain_forward
    add_fused_lm_head(model)
    of_replayed = model.forward.__func__

    @wraps(of_draws)
    def forward(self: PreTrainedModel, *args: Any, replayed: bool = False, **kwargs: Any) -> Any:
        of_rows = of_replayed if replayed else of_draws
        return of_rows(self, *args, **kwargs)

    # as a method, a copy of the model has it bound to the copy
    model.forward = MethodType(forward, model)


def divide_group(row: Row, budget: int | None, is_padded: bool = False) -> list[Row]:
    """Return a group in parts of at most `budget` tokens (None: any number), or of one completion, as all parts are if
    they will be padded. Every part has the prompt. Together they have the group's gradient, as advantages and shares
    are those of the step."""
    parts = list[Row]()
    room = 0
    for completion in row["completions"]:
        if not parts or (budget and (is_padded or len(completion.token_ids) > room)):
            parts.append({**row, "completions": []})
            room = (budget or 0) - len(row["prompt_ids"])
        parts[-1]["completions"].append(completion)
        room -= len(completion.token_ids)
    return parts


def ways_to_differ(cfg: Drawing, ended: float) -> str:
    """Return advice to get completions with different rewards. `ended`: the share of completions that end."""
    block = cfg.block
    keys = f"{block}.completions (now {cfg.completions}) or {block}.temperature (now {cfg.temperature:g})"
    ways = f"Raise {keys}, or use prompts that the model answers rightly now and then."
    if ended <= MOST:
        return f"Only {ended:.0%} of the last ones end: raise {block}.max_new_tokens. {ways}"
    return ways


def dead_steps_message(steps: Sequence[dict[str, Any]], cfg: Drawing) -> str:
    """Return a warning if no rewards differed in some of the steps, else ''."""
    dead = [step for step in steps if step["live_groups"] == 0]
    if not dead:
        return ""
    count = f"in {len(dead)} of {len(steps)} steps"
    problem = (
        f"{count}, all completions of each prompt had equal rewards, so these steps taught nothing"
    )
    if len(dead) == len(steps):
        problem = f"{problem}: the model is the one before training"
    return f"align={cfg.block}: {problem}. {ways_to_differ(cfg, dead[-1]['ended'])}"


def count_group_tokens(row: Row) -> int:
    """Return the number of tokens that the model reads of a group: of each completion all except the last."""
    completions = [len(completion.token_ids) - 1 for completion in row["completions"]]
    return len(row["prompt_ids"]) + sum(completions)


def count_trained_tokens(rows: Sequence[Row]) -> int:
    """Return the number of tokens of all completions of some rows."""
    completions = [completion for row in rows for completion in row["completions"]]
    return sum(len(completion.token_ids) for completion in completions)


def idle_row(row: Row) -> Row:
    """Return a row that only keeps a process busy: one completion with share 0 in the loss."""
    return {**row, "completions": [row["completions"][0]._replace(share=0.0)]}


def reading_options(inputs: Batch) -> dict[str, Any]:
    """Return the arguments with which a model reads a batch of groups."""
    options = {name: inputs[name] for name in ("input_ids", "layout", "scored", "shift_labels")}
    return options | {"use_cache": False, "fused_lm_head": True}


class DrawingTrainer(MicroBatches):
    """A trainer whose rows are prompts. For every step it gets rollouts of its weights from `rollouts`, which is set
    before training, as are the frozen `reference` if the loss reads one and there is no adapter, and any `replay`."""

    cfg: Drawing
    arguments: ClassVar = {"remove_unused_columns": False}
    rollouts: Rollouts
    reference: PreTrainedModel | None = None
    replay: Replay | None = None
    control: Any  # Trainer sets it

    def __init__(self, *args: Any, **kwargs: Any):
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._total_train_tokens = 0
        super().__init__(*args, **kwargs)
        self.loss_is_scaled_for_ga = True  # shares are those of the whole step

    @property
    def reads_old_log_probs(self) -> bool:
        """True if the loss of a pool's later steps needs the log-probs of the weights that drew."""
        return True

    @property
    def learns_from_older_draws(self) -> bool:
        """True if earlier weights drew the completions of this step."""
        return self.rollouts.pool.start < self.state.global_step

    @abstractmethod
    def teaches(self, group: list[Rollout]) -> bool:
        """Return whether the rewards of a group's completions say what is better."""

    @abstractmethod
    def step_rows(self, groups: Sequence[list[Rollout]]) -> list[Row]:
        """Return the groups of a step that teach something, each as its prompt and its `Scored` completions; none if
        the step teaches nothing. Shares are those of the whole step, in all processes."""

    def count_tokens(self, row: Row) -> int:
        if self.is_padded:
            longest = max(len(completion.token_ids) for completion in row["completions"])
            return len(row["completions"]) * (len(row["prompt_ids"]) + longest - 1)
        return count_group_tokens(row)

    def collate(self, rows: list[Row]) -> Batch:
        """Return groups as one row on the CPU, with the advantage and the share of every completion token, the index
        of its completion, and the sampler's log-prob of every completion."""
        groups = list[tuple[list[int], list[list[int]]]]()
        completions = list[Scored]()
        for row in rows:
            groups.append((row["prompt_ids"], [c.token_ids for c in row["completions"]]))
            completions += row["completions"]
        lengths = torch.tensor([len(c.token_ids) for c in completions])
        advantages = torch.tensor([c.advantage for c in completions])
        shares = torch.tensor([c.share for c in completions])
        log_probs = torch.tensor([c.draw.logprob or 0.0 for c in completions])
        batch = pack_groups(groups)
        if all(c.draw.old_logprobs for c in completions):
            older = [value for c in completions for value in c.draw.old_logprobs or ()]
            batch["old_log_probs"] = torch.tensor(older)
        if rows[0].get(REPLAYED):
            batch[REPLAYED] = True
        return batch | {
            "advantages": advantages.repeat_interleave(lengths),
            "shares": shares.repeat_interleave(lengths),
            "completion": torch.arange(len(lengths)).repeat_interleave(lengths),
            "sampled": torch.where(shares > 0, log_probs, 0.0),
        }

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
        replayed = list[Row]()
        loss = torch.zeros((), device=self.args.device)
        if live:
            # The groups of this process, or an idle row if there are none.
            replayed = self.replayed_rows(live)
            rows_here = self.rows_here(live) + self.rows_here(replayed)
            loss = super().training_step(model, StepRows(rows_here), num_items_in_batch)
            if self.rollouts.engine and not self.learns_from_older_draws:
                self.validate_engine_gap(self.summarize("train")["sampler_gap"])
        self._total_train_tokens += sum(map(count_group_tokens, live))
        figures = describe_step(groups, self.teaches) | {"num_tokens": self._total_train_tokens}
        if replayed:
            tokens = count_trained_tokens(replayed)
            figures["replayed"] = tokens / (tokens + count_trained_tokens(live))
        self._metrics["train"] |= {name: [value] for name, value in figures.items()}
        counts = [
            entry["live_groups"] for entry in self.state.log_history if "live_groups" in entry
        ][1 - MOST_DEAD :]
        if not live and len(counts) == MOST_DEAD - 1 and not any(counts):
            problem = (
                f"in {MOST_DEAD} steps in a row, all completions of each prompt had equal rewards"
            )
            ways = ways_to_differ(self.cfg, figures["ended"])
            raise UserError(f"align={self.cfg.block}: {problem}, so nothing is learnt. {ways}")
        return loss

    def rows_here(self, rows: list[Row]) -> list[Row]:
        """Return this process's part of a step's rows, or an idle row if it has none."""
        idle = [idle_row(row) for row in rows[:1]]
        return rows[self.args.process_index :: self.args.world_size] or idle

    def replayed_rows(self, live: list[Row]) -> list[Row]:
        """Return the demonstrations that are trained beside a step's groups. Their tokens have the weight of the groups'
        on average."""
        if not self.replay:
            return []
        shares = list[float]()
        for row in live:
            for completion in row["completions"]:
                shares += [completion.share] * len(completion.token_ids)
        rows = list[Row]()
        for row in self.replay.rows(self.state.global_step, len(shares)):
            completion = Scored(as_draw(row["completion_ids"]), 1.0, fmean(shares))
            prompt_ids = row["prompt_ids"]
            rows.append({REPLAYED: True, "prompt_ids": prompt_ids, "completions": [completion]})
        return rows

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
        first = FirstDraws(groups, self.rollouts.relative, self.teaches)
        self.log(first.figures)
        first.require_contrast(self.cfg)
        message = first.few_message(self.cfg)
        if message:
            self.out.warn(message)

    @torch.no_grad()
    def remember_log_probs(self, groups: Sequence[list[Rollout]]) -> None:
        """Add to completions the log-probs of their tokens by the weights of now."""
        rows = list[Row]()
        for group in groups:
            completions = [Scored(draw, 0.0, 1.0) for draw in group]
            prompt_ids = self.rollouts.token_ids[group[0].prompt_id]
            rows.append({"prompt_ids": prompt_ids, "completions": completions})
        for part in self.micro_batches(rows):
            batch = send_batch(self.collate(part), self.args.device)
            with autocast(self.cfg.precision, self.args.device):
                log_probs = self.model(**reading_options(batch)).log_probs[0].float()
            completions = [each for row in part for each in row["completions"]]
            lengths = [len(each.token_ids) for each in completions]
            for each, values in zip(completions, log_probs.split(lengths), strict=True):
                each.draw.old_logprobs = values.tolist()

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

    def micro_batches(self, rows: list[Row]) -> list[list[Row]]:
        """Return the groups in micro-batches, and then the replayed rows, whose loss is another."""
        replayed = [row for row in rows if row.get(REPLAYED)]
        batches = self.divide_evenly([row for row in rows if not row.get(REPLAYED)])
        if replayed:
            batches += self.divide_evenly(replayed)
        return batches

    def divide_evenly(self, rows: list[Row]) -> list[list[Row]]:
        """Divide rows by the budget, which may have fallen by now, into equally many parts in each process."""
        parts = list[Row]()
        for row in rows:
            parts += divide_group(row, self.token_budget, self.is_padded)
        most = max(gather_object([len(parts)]))
        idle = [idle_row(rows[0])] * (most - len(parts))
        return super().micro_batches(parts + idle)

    def is_divisible(self, rows: list[Row]) -> bool:
        return super().is_divisible(rows) or len(rows[0]["completions"]) > 1

    @abstractmethod
    def loss_of_draws(self, model: Any, inputs: Batch) -> torch.Tensor:
        """Return the loss of some groups, times the number of processes, which average their gradients."""

    def compute_loss(self, model: Any, inputs: Batch, **_: Any) -> Any:
        """Return the loss of a micro-batch: of draws, or the cross-entropy of replayed rows."""
        if REPLAYED not in inputs:
            return self.loss_of_draws(model, inputs)
        options = reading_options(inputs)
        if self.cfg.temperature != 1:
            options[REPLAYED] = True
        log_probs = model(**options).log_probs[0]
        counts = inputs["shares"] > 0
        self.note("replay_loss", -torch.where(counts, log_probs, 0).sum(), counts.sum())
        return -(inputs["shares"] * log_probs).sum() * self.args.world_size

    def note_draws(self, inputs: Batch, log_probs: torch.Tensor, entropy: torch.Tensor) -> None:
        """Note the policy's entropy, and how far its log-probs are from those of the sampler of the same weights, if both
        are at one temperature."""
        counts = inputs["shares"] > 0
        is_at_one_temperature = self.cfg.temperature == self.rollouts.logprob_temperature
        if is_at_one_temperature and not self.learns_from_older_draws:
            counted = torch.where(counts, log_probs, 0).float()
            sums = torch.zeros_like(inputs["sampled"]).index_add_(0, inputs["completion"], counted)
            self.note("sampler_gap", (sums - inputs["sampled"]).abs().sum(), counts.sum())
        self.note("entropy", torch.where(counts, entropy, 0).sum(), counts.sum())

    @torch.no_grad()
    def reference_log_probs(self, options: dict[str, Any]) -> torch.Tensor:
        """Return the log-probs under the SFT model: the frozen copy or, without one, the policy without adapter."""
        with autocast(self.cfg.precision, self.args.device):
            if self.reference:
                return self.reference(**options).log_probs[0]  # type: ignore[no-any-return]
            with self.model.disable_adapter():
                return self.model(**options).log_probs[0]  # type: ignore[no-any-return]

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
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
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
