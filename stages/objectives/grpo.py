"""GRPO (arXiv:2402.03300): rows, the model, advantages and shares, and the trainer.

A group is a prompt with the model's own completions. An advantage A is a completion's reward minus its baseline. The
loss is the sum over completion tokens of share · π/π_old · (β KL - A). π_old is π without a gradient, since every step
trains on its own rollouts. A token's share is by `loss_type`. KL is k3 (http://joschu.net/blog/kl-approx.html) to the
SFT model; with the factor π/π_old its gradient is unbiased (arXiv:2512.02556). A prompt is read once per group, or
once per completion if the model's attention cannot be packed."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ClassVar, NamedTuple

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel
from trl.trainer import add_fused_lm_head

from stages.config.blocks.training import ScoredGRPO
from stages.config.choices import Split
from stages.config.errors import UserError
from stages.curation.answer_rules import is_repetitive
from stages.evaluation.relative_scores import floors_by_prompt
from stages.models import lm_head
from stages.models.contract import Contract
from stages.models.loading import load_model
from stages.models.packing import pack_groups, read_groups
from stages.models.rendering import ContractError
from stages.models.scoring import autocast
from stages.store.records import Example
from stages.store.splits import draw_order
from stages.store.truncation import MOST
from stages.store.workspace import StageDir
from stages.training.fit import SplitRows
from stages.training.micro_batches import Batch, MicroBatches, StepRows
from stages.training.own_advantages import OwnAdvantages, load_own_advantages
from stages.training.rollouts import Rollout, Rollouts, describe_step
from stages.training.token_rows import PromptRows, Row

HELD_OUT = 128  # held-out prompts at most, which are answered at every evaluation
MOST_DEAD = 10  # steps in a row in which no group teaches
STD_FLOOR = 1e-4  # added to the standard deviation of a group's rewards, as in TRL
MOST_GAP = 0.05  # nats per token between the log-probs of an engine and the trainer's
ROW_REWARDS = "row_rewards"  # the key of an evaluation's rewards in the trainer's log
FLOOR = "eval_floor"  # the key of the reward of truncated answers there, if rewards are relative


class Scored(NamedTuple):
    """A completion, its advantage, each of its tokens' share in the step's loss, and its log-prob by the sampler."""

    token_ids: list[int]
    advantage: float
    share: float
    logprob: float


def read_rows(
    examples: Iterable[Example],
    contract: Contract,
    cfg: ScoredGRPO,
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
        if cfg.label.names == ["verifier"] and not example.checks:
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


def load_start(policy: Path, cfg: ScoredGRPO, device: torch.device) -> PreTrainedModel:
    """Return the SFT model as it reads rows of groups: the policy before the first step, or the frozen reference."""
    model = load_model(policy, cfg.start_weights, device)
    read_groups(model)
    lm_head.install_cpu_head()
    add_fused_lm_head(model, cfg.temperature, outputs=("log_probs", "entropy"))
    return model


def compute_advantages(rewards: Sequence[float], cfg: ScoredGRPO) -> list[float]:
    """Return each reward minus its baseline. grpo and dapo divide differences from a group's mean by its deviation."""
    mean = fmean(rewards)
    count = len(rewards)
    if cfg.baseline == "leave_one_out":
        return [(reward - mean) * count / (count - 1) for reward in rewards]
    if cfg.loss_type == "dr_grpo":
        return [reward - mean for reward in rewards]
    deviation = stdev(rewards) + STD_FLOOR
    return [(reward - mean) / deviation for reward in rewards]


def group_rows(
    groups: Sequence[list[Rollout]],
    prompts: dict[str, list[int]],
    cfg: ScoredGRPO,
    own_advantages: OwnAdvantages | None = None,
) -> list[Row]:
    """Return the groups that teach something, each as its prompt and its `Scored` completions: groups with different
    rewards and, with a KL term, then all others. Completions without a reward are left out. Shares are those of the
    whole step, which includes groups that teach nothing. `prompts`: token ids by id."""
    scored = [with_reward(group) for group in groups]
    live = [group for group in scored if has_difference(group)]
    if live and cfg.beta:
        live = [group for group in scored if len(group) > 1]
    count = sum(len(group) for group in scored)
    tokens = sum(rollout.n_tokens for group in scored for rollout in group)
    rows = list[Row]()
    for group in live:
        rewards = [rollout.reward or 0.0 for rollout in group]
        if own_advantages:
            advantages = own_advantages(rewards, [rollout.n_tokens for rollout in group])
        else:
            advantages = compute_advantages(rewards, cfg)
        completions = list[Scored]()
        for rollout, advantage in zip(group, advantages, strict=True):
            divisors = {
                "grpo": count * rollout.n_tokens,
                "dr_grpo": count * cfg.max_new_tokens,
                "dapo": tokens,
            }
            share = 1 / divisors[cfg.loss_type]
            ids = rollout.token_ids or []
            completions.append(Scored(ids, advantage, share, rollout.logprob or 0.0))
        rows.append({"prompt_ids": prompts[group[0].prompt_id], "completions": completions})
    return rows


def with_reward(group: list[Rollout]) -> list[Rollout]:
    return [rollout for rollout in group if rollout.reward is not None]


def has_difference(group: list[Rollout]) -> bool:
    """Return whether the rewards of a group differ, so that it teaches something."""
    return len({rollout.reward for rollout in group}) > 1


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


def ways_to_differ(cfg: ScoredGRPO, ended: float) -> str:
    """Return advice to get completions with different rewards. `ended`: the share of completions that end."""
    keys = f"grpo.completions (now {cfg.completions}) or grpo.temperature (now {cfg.temperature:g})"
    ways = f"Raise {keys}, or use prompts that the model answers rightly now and then."
    if ended <= MOST:
        return f"Only {ended:.0%} of the last ones end: raise grpo.max_new_tokens. {ways}"
    return ways


def dead_steps_message(steps: Sequence[dict[str, Any]], cfg: ScoredGRPO) -> str:
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
    return f"align=grpo: {problem}. {ways_to_differ(cfg, dead[-1]['ended'])}"


def count_group_tokens(row: Row) -> int:
    """Return the number of tokens that the model reads of a group: of each completion all except the last."""
    completions = [len(completion.token_ids) - 1 for completion in row["completions"]]
    return len(row["prompt_ids"]) + sum(completions)


def idle_row(row: Row) -> Row:
    """Return a row that only keeps a process busy: one completion with share 0 in the loss."""
    return {**row, "completions": [row["completions"][0]._replace(share=0.0)]}


class GroupTrainer(MicroBatches):
    """A trainer whose rows are prompts. For every step it gets rollouts of its current weights from `rollouts`, which
    is set before training, as is the frozen `reference` if there is a KL term and no adapter."""

    cfg: ScoredGRPO
    arguments: ClassVar = {"remove_unused_columns": False}
    rollouts: Rollouts
    reference: PreTrainedModel | None = None
    control: Any  # Trainer sets it

    def __init__(self, *args: Any, **kwargs: Any):
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._total_train_tokens = 0
        super().__init__(*args, **kwargs)
        self.loss_is_scaled_for_ga = True  # shares are those of the whole step

    @cached_property
    def own_advantages(self) -> OwnAdvantages | None:
        """The user's function, if `grpo.own` names one."""
        if not self.cfg.own:
            return None
        # the user's labeler may have its copy in the node's folder
        return load_own_advantages(self.cfg.own, self.cfg.own_key, self.out / "advantages")

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
        log_probs = torch.tensor([c.logprob for c in completions])
        return pack_groups(groups) | {
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
        groups = self.rollouts.of_step([row["id"] for row in inputs])
        live = group_rows(groups, self.rollouts.token_ids, self.cfg, self.own_advantages)
        loss = torch.zeros((), device=self.args.device)
        if live:
            # The groups of this process, or an idle row if there are none.
            rows_here = live[self.args.process_index :: self.args.world_size] or [idle_row(live[0])]
            loss = super().training_step(model, StepRows(rows_here), num_items_in_batch)
            if self.rollouts.engine:
                self.validate_engine_gap(self.summarize("train")["sampler_gap"])
        self._total_train_tokens += sum(map(count_group_tokens, live))
        figures = describe_step(groups) | {"num_tokens": self._total_train_tokens}
        self._metrics["train"] |= {name: [value] for name, value in figures.items()}
        counts = [
            entry["live_groups"] for entry in self.state.log_history if "live_groups" in entry
        ][1 - MOST_DEAD :]
        if not live and len(counts) == MOST_DEAD - 1 and not any(counts):
            problem = (
                f"in {MOST_DEAD} steps in a row, all completions of each prompt had equal rewards"
            )
            ways = ways_to_differ(self.cfg, figures["ended"])
            raise UserError(f"align=grpo: {problem}, so nothing is learnt. {ways}")
        return loss

    def validate_engine_gap(self, gap: float) -> None:
        """Raise UserError if the engine's log-probs of the step's tokens are so far from the trainer's that the engine
        had other weights, and forget the step's rollouts."""
        if gap <= MOST_GAP:  # a gap that is not a number is not
            return
        self.rollouts.forget_step()
        problem = f"the engine's log-probs differ from the trainer's by {gap:.2g} nats per token"
        raise UserError(
            f"grpo.sampler=vllm: {problem}, at most {MOST_GAP:g} is allowed. Nothing is published. "
            "Type the same command again to resume; if it recurs, use grpo.sampler=hf."
        )

    def micro_batches(self, rows: list[Row]) -> list[list[Row]]:
        """Divide the groups by the budget, which may have fallen by now, into equally many parts in each process."""
        parts = list[Row]()
        for row in rows:
            parts += divide_group(row, self.token_budget, self.is_padded)
        most = max(gather_object([len(parts)]))
        idle = [idle_row(rows[0])] * (most - len(parts))
        return super().micro_batches(parts + idle)

    def is_divisible(self, rows: list[Row]) -> bool:
        return super().is_divisible(rows) or len(rows[0]["completions"]) > 1

    def compute_loss(self, model: Any, inputs: Batch, **_: Any) -> Any:
        """Return the loss of some groups, times the number of processes, which average their gradients."""
        options = {name: inputs[name] for name in ("input_ids", "layout", "scored", "shift_labels")}
        options |= {"use_cache": False, "fused_lm_head": True}
        output = model(**options)
        shares = inputs["shares"]
        counts = shares > 0
        log_probs = output.log_probs[0]
        old_log_probs = log_probs.detach()
        costs = -inputs["advantages"]
        if self.cfg.beta:
            gaps = self.reference_log_probs(options) - log_probs
            kl = gaps.exp() - gaps - 1
            costs = costs + self.cfg.beta * kl
            self.note("kl", torch.where(counts, kl, 0).sum(), counts.sum())
        if self.cfg.temperature == self.rollouts.logprob_temperature:
            counted = torch.where(counts, old_log_probs, 0).float()
            sums = torch.zeros_like(inputs["sampled"]).index_add_(0, inputs["completion"], counted)
            self.note("sampler_gap", (sums - inputs["sampled"]).abs().sum(), counts.sum())
        self.note("entropy", torch.where(counts, output.entropy[0], 0).sum(), counts.sum())
        return (shares * costs * (log_probs - old_log_probs).exp()).sum() * self.args.world_size

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
