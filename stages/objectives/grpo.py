"""GRPO (arXiv:2402.03300): rows, advantages, the trainer, the model, and warnings about its curves.

A group is a prompt with the model's own completions. An advantage A is a completion's reward minus its baseline. The
loss is the sum over completion tokens of share · (-A π/π_old + β KL), where π_old is π without a gradient, since every
step trains on its own rollouts. A token's share is by `loss_type`, and KL is k3 (http://joschu.net/blog/kl-approx.html)
to the SFT model. A prompt is read once per group.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel
from trl.trainer import add_fused_lm_head, disable_dropout_in_model
from trl.trainer.utils import FusedCausalLMOutput

from stages.config.blocks.training import GRPO
from stages.config.choices import Split
from stages.config.errors import UserError
from stages.evaluation.intervals import paired
from stages.models import lm_head
from stages.models.contract import Contract
from stages.models.loading import load_model
from stages.models.packing import pack_groups, read_groups
from stages.models.rendering import ContractError
from stages.models.scoring import autocast
from stages.store.records import Example
from stages.store.workspace import StageDir
from stages.training.adapters import AnyModel, apply_adapter
from stages.training.fit import SplitRows
from stages.training.micro_batches import Batch, MicroBatches, StepRows
from stages.training.rollouts import Rollout, Rollouts
from stages.training.token_rows import PromptRows, Row

HELD_OUT = 128  # held-out prompts at most, which are answered at every evaluation
MOST_DEAD = 10  # steps in a row in which no group teaches
STD_FLOOR = 1e-4  # added to the standard deviation of a group's rewards, as in TRL
ROW_REWARDS = "row_rewards"  # the key of an evaluation's rewards in the trainer's log
LENGTHENED, FEWER_ENDINGS, COLLAPSED = 1.5, 0.05, 0.2  # changes from a training's first to its last fifth
NEEDED = ("input_ids", "layout", "scored", "shift_labels")


def read_rows(
    examples: Iterable[Example], contract: Contract, cfg: GRPO, out: StageDir, context: int | None = None
) -> tuple[SplitRows[PromptRows], list[tuple[Example, list[int]]]]:
    """Return the prompts that fit into `max_length` and the context with their completions, as rows, and as examples
    with token ids. The first HELD_OUT prompts by id of the validation split are held out."""
    longest, reason_too_long = cfg.longest(context)
    rows, prompts = SplitRows(PromptRows, cfg, out), list[tuple[Example, list[int]]]()
    asked = sorted((e for e in examples if e.split in (Split.preference, Split.validation)), key=lambda e: e.id)
    if cfg.label.labelers == ["verifier"]:
        unchecked = sum(not e.checks for e in asked)
        if unchecked:
            out.inform(f"{unchecked} prompts have no checks, so label=verifier cannot score their completions.")
        asked = [e for e in asked if e.checks]
    for example in asked:
        if example.split == Split.validation and len(rows.validation) == HELD_OUT:
            continue
        try:
            ids = contract.prompt(example.messages)
        except ContractError as reason:
            rows.left_out.add(example.id, reason)
            continue
        if (tokens := len(ids) + cfg.max_new_tokens) > longest:
            rows.left_out.add(example.id, reason_too_long, tokens)
            continue
        rows.add(example.split, example.id, {"id": example.id, "prompt_ids": ids}, example.messages)
        prompts.append((example, ids))
    rows.settle()
    return rows, prompts


def trainable_model(policy: Path, cfg: GRPO, device: torch.device) -> AnyModel:
    """Return the SFT model, or a new adapter on it, ready to train on rows of groups."""
    return apply_adapter(scoring_model(policy, cfg, device), cfg)


def scoring_model(policy: Path, cfg: GRPO, device: torch.device) -> PreTrainedModel:
    """Return the SFT model as it scores rows of groups: the policy before the first step, or the frozen reference.

    Raises:
        UserError: if its attention cannot be packed.
    """
    model = load_model(policy, cfg.start_weights, device)
    if not read_groups(model):
        raise UserError("align=grpo: this model's attention cannot read a group as one row. Use align=dpo.")
    disable_dropout_in_model(model)
    lm_head.install_cpu_head()
    add_fused_lm_head(model, cfg.temperature, outputs=("log_probs", "entropy"))
    return model


def advantages(rewards: Sequence[float], cfg: GRPO) -> list[float]:
    """Return each reward minus its baseline. The losses grpo and dapo divide differences from a group's mean by the
    group's standard deviation."""
    mean, count = fmean(rewards), len(rewards)
    if cfg.baseline == "leave_one_out":
        return [(reward - mean) * count / (count - 1) for reward in rewards]
    scale = 1.0 if cfg.loss_type == "dr_grpo" else stdev(rewards) + STD_FLOOR
    return [(reward - mean) / scale for reward in rewards]


def group_rows(groups: Sequence[list[Rollout]], prompts: dict[str, list[int]], cfg: GRPO) -> list[Row]:
    """Return the step's groups that teach something: those with different rewards, or with a KL term all of them. Each
    completion has its advantage, and the share of each of its tokens in the loss of the whole step. Completions without
    a reward are left out."""
    scored_groups = [[r for r in group if r.reward is not None] for group in groups]
    scored = [rollout for group in scored_groups for rollout in group]
    tokens = sum(rollout.n_tokens for rollout in scored)
    live = [group for group in scored_groups if len({rollout.reward for rollout in group}) > 1]
    if live and cfg.beta:
        live = [group for group in scored_groups if len(group) > 1]

    def share(rollout: Rollout) -> float:
        if cfg.loss_type == "dapo":
            return 1 / tokens
        return 1 / (len(scored) * (rollout.n_tokens if cfg.loss_type == "grpo" else cfg.max_new_tokens))

    return [
        {
            "prompt_ids": prompts[group[0].prompt_id],
            "completions": [rollout.token_ids for rollout in group],
            "advantages": advantages([float(rollout.reward or 0) for rollout in group], cfg),
            "shares": [share(rollout) for rollout in group],
            "logprobs": [rollout.logprob for rollout in group],
        }
        for group in live
    ]


def divide_group(row: Row, budget: int | None) -> list[Row]:
    """Return a group in parts of at most `budget` tokens, of at least one completion each. Every part has the prompt;
    advantages and shares are already those of the whole step, so the parts have the group's gradient."""
    columns = ("completions", "advantages", "shares", "logprobs")
    parts, room = list[Row](), 0
    for values in zip(*(row[name] for name in columns), strict=True):
        cost = len(values[0])
        if not parts or (budget and cost > room):
            parts.append({"prompt_ids": row["prompt_ids"], **{name: [] for name in columns}})
            room = (budget or 0) - len(row["prompt_ids"])
        room -= cost
        for name, value in zip(columns, values, strict=True):
            parts[-1][name].append(value)
    return parts


class GroupTrainer(MicroBatches):
    """A trainer whose rows are prompts. For every step it gets rollouts of its current weights from `rollouts`, which
    is set before training, as is the frozen `reference` if there is a KL term."""

    cfg: GRPO
    arguments: ClassVar = {"remove_unused_columns": False}
    is_padded = False
    rollouts: Rollouts
    reference: PreTrainedModel | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        self._metrics = {"train": defaultdict[str, list[Any]](list)}
        self._total_train_tokens: Any = 0
        super().__init__(*args, **kwargs)
        self.loss_is_scaled_for_ga = True  # shares are those of the whole step

    def count_tokens(self, row: Row) -> int:
        return len(row["prompt_ids"]) + sum(len(completion) - 1 for completion in row["completions"])

    def count_items(self, metric: str, batch: Batch) -> int:
        return int((batch["shares"] > 0).sum())

    def row_outputs(self, model: torch.nn.Module, rows: list[Row]) -> list[FusedCausalLMOutput]:
        raise NotImplementedError("held-out prompts are answered, not scored")

    def collate(self, rows: list[Row]) -> Batch:
        """Return groups as one row on the CPU. Per completion token: the advantage, the share, and the place of the
        completion, whose log-prob by the sampler is in `sampled`."""
        completions = [completion for row in rows for completion in row["completions"]]
        lengths = torch.tensor([len(completion) for completion in completions])
        columns = {
            name: torch.tensor([value for row in rows for value in row[name]], dtype=torch.float32)
            for name in ("advantages", "shares", "logprobs")
        }
        return pack_groups((row["prompt_ids"], row["completions"]) for row in rows) | {
            "advantages": columns["advantages"].repeat_interleave(lengths),
            "shares": columns["shares"].repeat_interleave(lengths),
            "completion": torch.arange(len(lengths)).repeat_interleave(lengths),
            "sampled": columns["logprobs"],
        }

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], None]:
        return [*islice(epoch_iterator, num_batches)], None

    def training_step(self, model: torch.nn.Module, inputs: StepRows, num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute the gradients of a step on rollouts of the current weights. A step in which no group teaches has no
        gradients, so that the optimizer changes nothing.

        Raises:
            UserError: if MOST_DEAD steps in a row had no group that teaches.
        """
        groups = self.rollouts.of_step([row["id"] for row in inputs])
        prompts = {name: ids for name, (_, ids) in self.rollouts.prompts.items()}
        live = group_rows(groups, prompts, self.cfg)
        loss = torch.zeros((), device=self.args.device)
        if live:
            loss = super().training_step(model, StepRows(self.rows_here(live)), num_items_in_batch)
        metrics = describe_step(groups)
        recent = [entry["live_groups"] for entry in self.state.log_history if "live_groups" in entry]
        if not any([metrics["live_groups"], *recent[1 - MOST_DEAD :]]) and len(recent) >= MOST_DEAD - 1:
            raise UserError(
                f"align=grpo: in {MOST_DEAD} steps in a row, all completions of each prompt had equal rewards, so "
                f"nothing is learnt. Raise grpo.completions (now {self.cfg.completions}) or grpo.temperature (now "
                f"{self.cfg.temperature:g}), or use prompts that the model answers rightly now and then."
            )
        self._metrics["train"] |= {name: [value] for name, value in metrics.items()}
        return loss

    def rows_here(self, live: list[Row]) -> list[Row]:
        """Return this process's share of the step's groups, equally many rows in each process. A row that fills up has
        share 0 in the loss."""
        mine = live[self.args.process_index :: self.args.world_size]
        rows = [part for row in mine for part in divide_group(row, self.token_budget)]
        idle = divide_group(live[0], 1)[0] | {"shares": [0.0]}
        return rows + [idle] * (max(gather_object([len(rows)])) - len(rows))

    def compute_loss(self, model: Any, inputs: Batch, return_outputs: bool = False, **_: Any) -> Any:
        """Return the loss of some groups, times the number of processes, which average their gradients."""
        options = {name: inputs[name] for name in NEEDED} | {"use_cache": False, "fused_lm_head": True}
        output = model(**options)
        log_probs, shares, metrics = output.log_probs[0], inputs["shares"], self._metrics["train"]
        loss = -inputs["advantages"] * (log_probs - log_probs.detach()).exp()
        counted = shares > 0
        if self.reference is not None:
            with torch.no_grad(), autocast(self.cfg.precision, self.args.device):
                reference = self.reference(**options).log_probs[0]
            kl = (reference - log_probs).exp() - (reference - log_probs) - 1
            loss = loss + self.cfg.beta * kl
            metrics["kl"].append(torch.where(counted, kl.detach(), 0).sum() / counted.sum())
        metrics["entropy"].append(torch.where(counted, output.entropy[0], 0).sum() / counted.sum())
        if self.cfg.temperature == 1:  # the sampler's log-probs are at temperature 1
            sums = torch.zeros_like(inputs["sampled"]).index_add_(0, inputs["completion"], log_probs.detach().float())
            used = torch.zeros_like(sums).index_add_(0, inputs["completion"], shares) > 0
            gaps = torch.where(used, (sums - inputs["sampled"]).abs(), 0)
            metrics["sampler_gap"].append(gaps.sum() / counted.sum())
        self._total_train_tokens += inputs["input_ids"].new_tensor(inputs["input_ids"].numel())
        return (shares * loss).sum() * self.args.world_size

    def evaluate(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Answer the held-out prompts greedily. Log the mean reward, and the share of answers with reward 1."""
        answers = self.rollouts.held_out([*dict.fromkeys(row["id"] for row in self.eval_dataset)])
        rewards = [answer.reward for answer in answers]
        scored = [reward for reward in rewards if reward is not None]
        metrics: dict[str, Any] = {ROW_REWARDS: rewards}
        if scored:
            metrics |= {"eval_reward": fmean(scored), "eval_pass_rate": fmean(reward == 1 for reward in scored)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's metrics. A step without live groups has no gradient, so no norm of it."""
        metrics = {name: fmean(values) for name, values in self._metrics["train"].items()} if "loss" in logs else {}
        if metrics.get("live_groups") == 0:
            logs.pop("grad_norm", None)
        super().log({**logs, **metrics}, start_time)
        self._metrics["train"].clear()


def describe_step(groups: Sequence[list[Rollout]]) -> dict[str, float]:
    """Return the figures of a step's rollouts: mean reward with the standard error over prompts, groups with different
    rewards, mean tokens, share of completions that ended their turn, and completions without a reward."""
    rewards = [[r.reward for r in group if r.reward is not None] for group in groups]
    means, rollouts = [fmean(group) for group in rewards if group], [r for group in groups for r in group]
    return {
        "reward": fmean(means) if means else 0.0,
        "reward_se": stdev(means) / len(means) ** 0.5 if len(means) > 1 else 0.0,
        "live_groups": sum(len({*group}) > 1 for group in rewards),
        "groups": len(groups),
        "completion_tokens": fmean(rollout.n_tokens for rollout in rollouts),
        "ended": fmean(rollout.finish_reason == "stop" for rollout in rollouts),
        "unscored": sum(rollout.reward is None for rollout in rollouts),
    }


def warnings(history: Sequence[dict[str, Any]]) -> list[str]:
    """Return warnings about a training's log: reward that rises without a gain on held-out prompts, longer or unended
    completions, and completions that became alike."""
    steps = [entry for entry in history if "live_groups" in entry]
    fifth = max(1, len(steps) // 5)

    def change(name: str) -> tuple[float, float]:
        values = [step[name] for step in steps if name in step]
        return (fmean(values[:fifth]), fmean(values[-fifth:])) if values else (0.0, 0.0)

    found, evaluations = list[str](), [entry[ROW_REWARDS] for entry in history if ROW_REWARDS in entry]
    rewards = [step["reward"] for step in steps]
    rise = paired(rewards[:fifth], rewards[-fifth:]) if fifth > 1 else None
    if not evaluations:
        found.append("no prompt is held out, so it is unknown if the reward's rise is a gain. Add validation prompts.")
    elif rise and rise.low > 0:
        rows = [(a, b) for a, b in zip(evaluations[0], evaluations[-1], strict=True) if None not in (a, b)]
        gain = paired(*zip(*rows, strict=True)) if len(rows) > 1 else None
        if gain is None or gain.low <= 0:
            found.append(
                f"the reward rose from {change('reward')[0]:.3f} to {change('reward')[1]:.3f}, but on held-out prompts "
                "no gain is shown. The model may have learnt prompts by heart, or what the labeler overrates: add "
                "prompts, or set grpo.beta=0.04."
            )
    before, after = change("completion_tokens")
    if after > LENGTHENED * before:
        found.append(f"completions grew from {before:.0f} to {after:.0f} tokens: the labeler may reward length.")
    before, after = change("ended")
    if after < before - FEWER_ENDINGS:
        found.append(f"the share of completions that end fell from {before:.1%} to {after:.1%}. Set grpo.beta=0.04.")
    before, after = change("entropy")
    if after < COLLAPSED * before:
        found.append(
            f"the entropy fell from {before:.2g} to {after:.2g} nats per token: the completions of a prompt are nearly "
            "alike, and teach little. Lower grpo.learning_rate, or set grpo.beta=0.04."
        )
    return found
