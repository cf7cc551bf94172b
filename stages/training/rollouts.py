"""Rollouts: completions of a step's prompts by the model in training, with rewards.

The noise depends on prompt, candidate, seed and step alone. Each step's rollouts are saved with the digest of the
weights that wrote them, so a resumed training reads them and draws none again. Before every draw the sampler's weights
are compared with the trainer's: rollouts of older weights would train in a wrong direction.

With `sync_every`, several steps form a pool: the weights before its first step draw for all of them, and the trainer's
log-probs under these weights are saved with the rollouts, since the later steps have other weights."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object, reduce
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import Trainer

from stages.config.blocks.draws import Drawing
from stages.config.choices import Sharding
from stages.config.errors import UserError
from stages.curation.answer_rules import is_repetitive
from stages.evaluation.claims import Word, word_of
from stages.evaluation.estimate import difference
from stages.evaluation.relative_scores import floors_by_prompt
from stages.hardware import allocator, machine
from stages.hardware.memory import ROLLOUT_ROWS
from stages.models.contract import Contract
from stages.models.loading import sampling_weights, torch_dtype
from stages.models.packing import has_only_attention
from stages.samplers.completions import make_candidate, validate_completion
from stages.samplers.hf import HFSampler, prepack
from stages.samplers.sampler import Completion, Request, Sampler
from stages.store.records import Candidate, Example, Judgement, content_id, load, save
from stages.store.sealed_json import Damaged, move_aside
from stages.store.table_schema import Float32
from stages.store.workspace import SCRATCH, StageDir
from stages.training.rollout_engine import RolloutEngine, sum_bits
from stages.training.samples import copy_skeleton, inference_copy, merged_copy


@dataclass
class Rollout(Candidate):
    """A completion with its reward, or why it has none. `policy`: the step that wrote it, and its weights' digest.
    `old_logprobs`: of its tokens by the trainer with these weights, if a later step learns from it."""

    reward: float | None = None
    error: str | None = None
    old_logprobs: list[Float32] | None = None

    @property
    def step(self) -> int:
        """The step whose weights wrote it."""
        return int(self.policy.split(",")[0].removeprefix("step "))


def with_reward(group: Iterable[Rollout]) -> list[Rollout]:
    """Return the completions that have a reward."""
    return [rollout for rollout in group if rollout.reward is not None]


def ended_with_reward(group: Iterable[Rollout]) -> list[Rollout]:
    """Return the completions that ended and have a reward."""
    return [rollout for rollout in with_reward(group) if rollout.finish_reason == "stop"]


Prompts = Mapping[str, Example]  # by id
JudgeRollouts = Callable[[list[Example], list[Rollout]], Iterable[Judgement]]
Remember = Callable[[Sequence[list[Rollout]]], None]  # adds the log-probs of the trainer's weights
FIRST = "first.parquet"  # the draws before the first step


class Rollouts:
    """Draws the rollouts of a trainer's steps, or reads them from the shards of an earlier attempt. With several
    processes, each completes its own prompts, and all of them get all rollouts. `relative`: the labeler's. Without
    an engine this process samples."""

    def __init__(
        self,
        trainer: Trainer,
        cfg: Drawing,
        contract: Contract,
        prompts: Prompts,
        judge: JudgeRollouts,
        relative: bool,
        out: StageDir,
        engine: RolloutEngine | None = None,
    ):
        self.trainer = trainer
        self.cfg = cfg
        self.contract = contract
        self.prompts = prompts
        self.judge = judge
        self.relative = relative
        self.engine = engine
        self.folder = out / SCRATCH / "rollouts"
        self.is_main = out.is_main
        self.token_ids = {
            name: contract.prompt(example.messages) for name, example in prompts.items()
        }
        self.dtype = torch_dtype(sampling_weights(cfg.precision))
        self.skeleton = None
        if cfg.runtime.sharding is not Sharding.none:
            self.skeleton = copy_skeleton(trainer.model)
        # of the log-probs of the rollouts' tokens
        self.logprob_temperature = cfg.temperature if engine else 1.0

    @property
    def next_step(self) -> int:
        return self.trainer.state.global_step

    @property
    def pool(self) -> range:
        """The steps of the pool that the next step is in, as far as they are trained."""
        step = self.next_step
        total = self.trainer.state.max_steps
        size = self.cfg.pool_steps or max(1, total)
        first = step - step % size
        return range(first, max(step + 1, min(first + size, total)))

    def shard(self, step: int) -> Path:
        """Return the file with the rollouts of a step."""
        return self.folder / f"{step:06d}.parquet"

    def digest(self, model: torch.nn.Module) -> str:
        """Return the digest of the trainer's model, or of a copy of it, in the sampler's precision."""
        return weights_digest(model, self.dtype, sharded=self.skeleton is not None)

    def forget_step(self) -> None:
        """Remove the rollouts of this step, so that a resumed training draws them again."""
        if self.is_main:
            self.shard(self.next_step).unlink(missing_ok=True)

    def of_step(
        self,
        ids: Sequence[str],
        later_ids: Mapping[int, Sequence[str]] | None = None,
        remember: Remember | None = None,
    ) -> list[list[Rollout]]:
        """Return the groups of the next step in all processes. `ids`: the prompts of this process. If they are not drawn
        yet, draw also for the later steps of the pool: `later_ids`, by step; `remember` adds log-probs to all of them."""
        step = self.next_step
        policy = f"step {step}, weights {self.digest(self.trainer.model)}"
        found = self.read_step(policy) if self.is_main else None
        [rollouts] = broadcast_object_list([found])
        if not rollouts:
            rollouts = self.draw_pool({step: ids, **(later_ids or {})}, policy, remember)
        return self.in_groups(rollouts)

    def read_step(self, policy: str) -> list[Rollout] | None:
        """Return the rollouts of the next step if an earlier attempt drew them: by the weights of `policy`, which are
        those of this step, or by those of an earlier step of the pool."""
        rollouts = read_shard(self.shard(self.next_step))
        for rollout in rollouts or ():
            is_of_pool = rollout.step in self.pool and rollout.step < self.next_step
            if rollout.policy != policy and not is_of_pool:
                return None
        return rollouts

    def draw_pool(
        self, ids_by_step: Mapping[int, Sequence[str]], policy: str, remember: Remember | None
    ) -> list[Rollout]:
        """Draw the rollouts of some steps by the weights of now, save them, and return those of the first step."""
        sampler = self.open_sampler(policy)
        drawn = dict[int, list[Rollout]]()
        for step, ids in ids_by_step.items():
            seed = int(content_id(self.cfg.seed, step), 16)
            drawn[step] = self.draw(sampler, ids, seed, policy)
        if remember:
            remember([group for rollouts in drawn.values() for group in self.in_groups(rollouts)])
        # The first step comes last: a resumed training that finds its file has the others, too.
        for step in sorted(drawn, reverse=True):
            rollouts = gather_object(drawn[step])
            self.save(self.shard(step), rollouts)
        return rollouts

    def before_first_step(self, ids: Sequence[str]) -> list[list[Rollout]]:
        """Return a group of each of these prompts, which are the same in every process, by the weights before the first
        step."""
        policy = f"step 0, weights {self.digest(self.trainer.model)}"
        shard = self.folder / FIRST
        found = read_shard(shard) if self.is_main else None
        if found and {rollout.policy for rollout in found} != {policy}:
            found = None
        [rollouts] = broadcast_object_list([found])
        if not rollouts:
            seed = int(content_id(self.cfg.seed, FIRST), 16)
            sampler = self.open_sampler(policy)
            rollouts = gather_object(self.draw(sampler, self.share_of(ids), seed, policy))
            self.save(shard, rollouts)
        return self.in_groups(rollouts)

    def save(self, shard: Path, rollouts: list[Rollout]) -> None:
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            save(shard, rollouts, Rollout)

    def share_of(self, ids: Sequence[str]) -> Sequence[str]:
        """Return the part of some prompts that this process completes."""
        return ids[self.trainer.args.process_index :: self.trainer.args.world_size]

    @staticmethod
    def in_groups(rollouts: list[Rollout]) -> list[list[Rollout]]:
        """Return the completions of each prompt, in order."""
        groups = defaultdict[str, list[Rollout]](list)
        for rollout in rollouts:
            groups[rollout.prompt_id].append(rollout)
        return [*groups.values()]

    def draw(self, sampler: Sampler, ids: Sequence[str], seed: int, policy: str) -> list[Rollout]:
        """Return the completions of every prompt, in order, with rewards. With `truncated: mask`, truncated ones have
        none."""
        temperatures = [self.cfg.temperature] * self.cfg.completions
        rollouts = self.complete(sampler, ids, temperatures, seed, policy)
        for rollout in rollouts:
            if self.cfg.truncated == "mask" and rollout.finish_reason != "stop":
                rollout.reward = None
        return rollouts

    def held_out(self, ids: Sequence[str]) -> list[Rollout]:
        """Return a greedy answer to each of these prompts, which are the same in every process."""
        digest = self.digest(self.trainer.model)
        sampler = self.open_sampler(digest)
        answers = gather_object(self.complete(sampler, self.share_of(ids), [0.0], 0, digest))
        by_prompt = {answer.prompt_id: answer for answer in answers}
        return [by_prompt[name] for name in ids if name in by_prompt]

    def complete(
        self,
        sampler: Sampler,
        ids: Sequence[str],
        temperatures: list[float],
        seed: int,
        policy: str,
    ) -> list[Rollout]:
        """Return a completion per temperature of every prompt, in order, with rewards.
        Raise UserError if too many completions have no reward."""
        requests = [
            Request(i, self.prompts[i].messages, self.token_ids[i], temperatures, seed) for i in ids
        ]
        drawn = {request.id: completions for request, completions in sampler.complete(requests)}
        source = f"the sampler {sampler.name}"
        stop_ids = self.contract.stop_ids
        vocabulary = self.trainer.model.config.get_text_config().vocab_size
        rollouts = list[Rollout]()
        for request in requests:
            for place, completion in enumerate(drawn[request.id]):
                if not isinstance(completion, Completion):
                    continue
                validate_completion(completion, source, request.id, stop_ids, vocabulary)
                candidate = make_candidate(
                    request, place, completion, self.contract, policy, sampler.name
                )
                rollouts.append(Rollout(**vars(candidate)))
        return self.add_rewards([self.prompts[i] for i in ids], rollouts)

    def open_sampler(self, policy: str) -> Sampler:
        """Return a sampler of the trainer's weights. `policy` ends with their digest.
        Raise UserError if the sampler's weights are others."""
        machine.give_back_gpu_memory()
        allocator.return_freed_memory()
        model = inference_copy(self.trainer.model, self.cfg.precision, self.skeleton)
        digest = self.digest(model)
        if not policy.endswith(digest):
            problem = f"the sampler has the weights {digest}, but the trainer is at {policy}"
            result = "Its completions would teach older weights, so nothing is published"
            raise UserError(
                f"{self.cfg.subject}: {problem}. {result}. Type the same command again."
            )
        trained = self.trainer.model
        if self.engine and isinstance(trained, PeftModel):
            return self.engine.load(merged_copy(trained, self.cfg.precision))
        if self.engine:
            return self.engine.load(model)
        if has_only_attention(model):  # Mamba's layers read the weights of others
            prepack(model, ROLLOUT_ROWS)
        return HFSampler.of(
            model, self.contract.stop_ids, self.cfg.max_new_tokens, 1.0, ROLLOUT_ROWS
        )

    def add_rewards(self, prompts: list[Example], rollouts: list[Rollout]) -> list[Rollout]:
        """Score the rollouts in place, and return them. One without a finite score gets an error and no reward. A
        truncated one is not judged: its reward is the floor of its group, or none if no completion has one. All
        processes call this at once, each with its own prompts."""
        ended = [r for r in rollouts if r.finish_reason == "stop"]
        to_judge = {r.prompt_id for r in ended}
        pool = [prompt for prompt in prompts if prompt.id in to_judge]
        # Every process judges, also if none of its rollouts ended: labelers gather figures of the whole step.
        judgements = {each.candidate_id: each for each in self.judge(pool, ended)}
        rewards_by_prompt: dict[str, list[float]] = {r.prompt_id: [] for r in rollouts}
        for rollout in ended:
            judgement = judgements.get(rollout.candidate_id)
            if judgement and judgement.score is not None and isfinite(judgement.score):
                rollout.reward = float(judgement.score)
                rewards_by_prompt[rollout.prompt_id].append(rollout.reward)
            else:
                rollout.error = (judgement and judgement.error) or "the labeler gave no score"
        self.require_scored(ended)
        floors = floors_by_prompt(rewards_by_prompt, self.relative, gather_object)
        for rollout in rollouts:
            if rollout.finish_reason != "stop":
                rollout.reward = floors.get(rollout.prompt_id)
        return rollouts

    def require_scored(self, ended: Sequence[Rollout]) -> None:
        """Raise UserError if too many of the completions that ended, in all processes, have no reward."""
        reasons = list[str]()
        for rollout in ended:
            if rollout.reward is None:
                row = self.prompts[rollout.prompt_id].opening
                reasons.append(f'{rollout.error} (prompt "{row}")')
        counts: list[tuple[int, int, list[str]]] = gather_object(
            [(len(reasons), len(ended), reasons[:1])]
        )
        unscored = sum(count for count, _, _ in counts)
        total = sum(count for _, count, _ in counts)
        limit = self.cfg.scorer.max_failed
        if unscored <= limit * total:
            return
        problem = f"{unscored} of {total} completions of a step have no reward"
        [cause, *_] = [reason for _, _, first in counts for reason in first]
        way_out = "Remove the cause; the same command then resumes. A higher limit starts anew."
        raise UserError(
            f"{self.cfg.scorer.block}.max_failed={limit:g}: {problem}, because: {cause}. {way_out}"
        )


def read_shard(shard: Path) -> list[Rollout] | None:
    """Return the rollouts that an earlier attempt saved; None if there are none, or the file is damaged."""
    if not shard.exists():
        return None
    try:
        return load(shard, Rollout)
    except Damaged as error:
        move_aside(shard, error)
        return None


@torch.no_grad()
def weights_digest(model: torch.nn.Module, dtype: torch.dtype, sharded: bool = False) -> str:
    """Return a digest of all weights as they are in this type: of the sum of every parameter's bits. An optimizer step
    changes nearly all sums. They are computed on the device. With `sharded`, a model whose weights are divided among
    the processes has the digest of the whole one; all processes must call this at once."""
    sums = list[torch.Tensor]()
    is_divided = False
    for parameter in model.parameters():
        part: torch.Tensor = parameter
        if isinstance(part, DTensor):
            is_divided = True
            part = part.to_local()
        if part.is_floating_point():
            part = part.to(dtype)
        # The widest integers are summed up fastest, but single elements add up over shards.
        sums.append(sum_bits(part, widest=not sharded))
    total = torch.stack(sums)
    if is_divided:
        total = reduce(total, "sum")
    return content_id(total.tolist())


def describe_step(
    groups: Sequence[list[Rollout]], teaches: Callable[[list[Rollout]], bool]
) -> dict[str, float]:
    """Return the figures of a step's rollouts: mean reward with its standard error over prompts, groups that teach
    something, mean tokens, shares that ended their turn and that repeat themselves, and completions without a reward."""
    means = list[float]()
    live = 0
    rollouts = list[Rollout]()
    for group in groups:
        rollouts += group
        rewards = [rollout.reward for rollout in group if rollout.reward is not None]
        live += teaches(group)
        if rewards:
            means.append(fmean(rewards))
    standard_error = 0.0
    if len(means) > 1:
        standard_error = stdev(means) / len(means) ** 0.5
    return {
        "reward": fmean(means or [0.0]),
        "reward_se": standard_error,
        "live_groups": live,
        "groups": len(groups),
        "completion_tokens": fmean(r.n_tokens for r in rollouts),
        "ended": fmean(r.finish_reason == "stop" for r in rollouts),
        "loops": fmean(is_repetitive(r.text) for r in rollouts),
        "unscored": sum(r.reward is None for r in rollouts),
    }


def reward_message(
    steps: Sequence[dict[str, Any]],
    held_out: Sequence[list[float | None]],
    validation_prompts: int,
    cfg: Drawing,
) -> str:
    """Return a warning if the reward rose from the first to the last fifth of the steps, but no gain on held-out prompts
    is shown; else ''. `held_out`: rewards by evaluation. `validation_prompts`: how many could be asked."""
    if not held_out:
        problem = "no held-out prompt was asked, so the curves show no gain"
        if validation_prompts:
            return f"{problem}. Set {cfg.block}.evaluations=2."
        # no way out is offered: rows without an answer cannot be validation prompts
        return (
            f"{problem}. The data has no validation prompts: the report shows it on test prompts."
        )
    fifth = max(1, len(steps) // 5)
    rewards = [step["reward"] for step in steps]
    first = rewards[:fifth]
    last = rewards[-fifth:]
    has_risen = word_of(difference(first, last)) is Word.better
    if not has_risen or has_gain(held_out[0], held_out[-1]):
        return ""
    rise = f"the reward rose from {fmean(first):.3f} to {fmean(last):.3f}"
    cause = "The model may know its prompts by heart, or what the labeler overrates"
    way_out = f"add prompts, or {cfg.way_to_stay_near}"
    return (
        f"{rise}, but on {len(held_out[0])} held-out prompts no gain is shown. {cause}: {way_out}."
    )


def has_gain(before: Sequence[float | None], after: Sequence[float | None]) -> bool:
    """Return True if the rewards of the same prompts rose by more than noise."""
    earlier = list[float]()
    later = list[float]()
    for a, b in zip(before, after, strict=True):
        if a is not None and b is not None:
            earlier.append(a)
            later.append(b)
    return len(earlier) > 1 and word_of(difference(earlier, later)) is Word.better
