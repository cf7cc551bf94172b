"""GRPO (arXiv:2402.03300): advantages, shares and the loss of draws.

A group is a prompt with the model's own completions. An advantage A is a completion's reward minus its baseline. The
loss is the sum over completion tokens of share · π/π_old · (β KL - A). π_old is π without a gradient if every step
trains on its own draws (`sync_every=1`), else the policy that drew. A token's share is by `loss_type`. KL is k3
(http://joschu.net/blog/kl-approx.html) to the SFT model; with the factor π/π_old its gradient is unbiased
(arXiv:2512.02556). A prompt is read once per group, or once per completion if the model's attention cannot be packed.

With `baseline=best` (RAFT, arXiv:2304.06767) the loss is that of SFT on the best draws: the mean of -log π over their
tokens, at the temperature of the draws. An advantage is then 1 or 0, and older draws get no factor π/π_old, as
demonstrations do not."""

from collections.abc import Sequence
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

import torch

from stages.config.blocks.grpo import GRPO
from stages.evaluation.relative_scores import DIGITS, have_difference
from stages.store.splits import draw_order
from stages.training.completion_trainer import CompletionTrainer, Scored, reading_options
from stages.training.micro_batches import Batch
from stages.training.own_advantages import OwnAdvantages, load_own_advantages
from stages.training.rollouts import Rollout, ended_with_reward, with_reward
from stages.training.token_rows import Row

STD_FLOOR = 1e-4  # added to the standard deviation of a group's rewards, as in TRL


def compute_advantages(rewards: Sequence[float], cfg: GRPO) -> list[float]:
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
    cfg: GRPO,
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
            completions.append(Scored(rollout, advantage, share))
        rows.append({"prompt_ids": prompts[group[0].prompt_id], "completions": completions})
    return rows


def best_rows(
    groups: Sequence[list[Rollout]],
    prompts: dict[str, list[int]],
    cfg: GRPO,
    relative: bool,
) -> list[Row]:
    """Return the groups with draws to train on, each as its prompt and its `Scored` completions. The share of a token is
    one by the trained tokens of the step. With a KL term, all completions are read, and it is the mean over these."""
    chosen = [choose_draws(group, cfg, relative) for group in groups]
    trained_tokens = sum(draw.n_tokens for draws in chosen for draw in draws)
    read = chosen
    if cfg.beta and trained_tokens:
        read = [with_reward(group) for group in groups]
    read_tokens = sum(draw.n_tokens for draws in read for draw in draws)
    rows = list[Row]()
    for draws, trained in zip(read, chosen, strict=True):
        if not draws:
            continue
        trained_ids = {draw.candidate_id for draw in trained}
        completions = list[Scored]()
        for draw in draws:
            advantage = 0.0
            if draw.candidate_id in trained_ids:
                # 1, unless the KL term has tokens of its own
                advantage = read_tokens / trained_tokens
            completions.append(Scored(draw, advantage, 1 / read_tokens))
        rows.append({"prompt_ids": prompts[draws[0].prompt_id], "completions": completions})
    return rows


def choose_draws(group: list[Rollout], cfg: GRPO, relative: bool) -> list[Rollout]:
    """Return the draws of a group to train on, at most `best`, in the order of the draws: those that ended with its
    highest score. None if all score alike (unless `skip` is false), or that is below `min_score`. With `choose: random`,
    as many of those that ended, by hash."""
    ended = ended_with_reward(group)
    if not ended or (cfg.skip is not False and not has_difference(with_reward(group))):
        return []
    highest = max(draw.reward or 0.0 for draw in ended)
    if not relative and highest < (cfg.min_score or 0.0):
        return []
    best = [draw for draw in ended if round((draw.reward or 0.0) - highest, DIGITS) == 0]
    best = best[: cfg.best]
    if cfg.choose != "random":
        return best
    drawn = sorted(ended, key=by_hash)[: len(best)]
    return [draw for draw in ended if draw in drawn]


def by_hash(draw: Rollout) -> Any:
    """Return the key by which draws are chosen at random."""
    return draw_order(draw.candidate_id)


def has_difference(group: list[Rollout]) -> bool:
    """Return whether the rewards of a group differ, so that it teaches something."""
    return have_difference([rollout.reward or 0.0 for rollout in group])


class GroupTrainer(CompletionTrainer):
    """A trainer by GRPO's loss."""

    cfg: GRPO

    @cached_property
    def own_advantages(self) -> OwnAdvantages | None:
        """The user's function, if `grpo.own` names one."""
        if not self.cfg.own:
            return None
        # the user's labeler may have its copy in the node's folder
        return load_own_advantages(self.cfg.own, self.cfg.own_key, self.out / "advantages")

    @property
    def reads_old_log_probs(self) -> bool:
        return not self.cfg.takes_best or bool(self.cfg.beta)

    def teaches(self, group: list[Rollout]) -> bool:
        if self.cfg.takes_best:
            return bool(choose_draws(group, self.cfg, self.rollouts.relative))
        return has_difference(with_reward(group))

    def step_rows(self, groups: Sequence[list[Rollout]]) -> list[Row]:
        token_ids = self.rollouts.token_ids
        if self.cfg.takes_best:
            return best_rows(groups, token_ids, self.cfg, self.rollouts.relative)
        return group_rows(groups, token_ids, self.cfg, self.own_advantages)

    def loss_of_draws(self, model: Any, inputs: Batch) -> torch.Tensor:
        """Return the loss of some groups, times the number of processes, which average their gradients."""
        options = reading_options(inputs)
        output = model(**options)
        shares = inputs["shares"]
        counts = shares > 0
        log_probs = output.log_probs[0]
        old_log_probs = inputs.get("old_log_probs", log_probs.detach())
        costs = -inputs["advantages"]
        if self.cfg.beta:
            gaps = self.reference_log_probs(options) - log_probs
            kl = gaps.exp() - gaps - 1
            costs = costs + self.cfg.beta * kl
            self.note("kl", torch.where(counts, kl, 0).sum(), counts.sum())
        self.note_draws(inputs, log_probs.detach(), output.entropy[0])
        if self.cfg.takes_best:
            gains = inputs["advantages"] * log_probs
            penalties = (costs + inputs["advantages"]) * (log_probs - old_log_probs).exp()
            return (shares * (penalties - gains)).sum() * self.args.world_size
        return (shares * costs * (log_probs - old_log_probs).exp()).sum() * self.args.world_size
