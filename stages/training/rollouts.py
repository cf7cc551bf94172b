"""Rollouts: completions of a step's prompts by the model in training, with rewards.

The noise depends on prompt, candidate, seed and step alone. Each step's rollouts are saved with the digest of the
weights that wrote them, so a resumed training reads them and draws none again. Before every step the sampler's weights
are compared with the trainer's: rollouts of older weights would train in a wrong direction."""

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
from transformers import PreTrainedModel, Trainer

from stages.config.blocks.training import ScoredGRPO
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
from stages.store.workspace import SCRATCH, StageDir
from stages.training.rollout_engine import RolloutEngine, sum_bits
from stages.training.samples import copy_skeleton, inference_copy, merged_copy


@dataclass
class Rollout(Candidate):
    """A completion with its reward, or why it has none. `policy`: the step that wrote it, and its weights' digest."""

    reward: float | None = None
    error: str | None = None


Prompts = Mapping[str, Example]  # by id
Judge = Callable[[list[Example], list[Rollout]], Iterable[Judgement]]


class Rollouts:
    """Draws the rollouts of a trainer's steps, or reads them from the shards of an earlier attempt. With several
    processes, each completes its own prompts, and all of them get all rollouts. `relative`: the labeler's. Without
    an engine this process samples."""

    def __init__(
        self,
        trainer: Trainer,
        cfg: ScoredGRPO,
        contract: Contract,
        prompts: Prompts,
        judge: Judge,
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
    def shard(self) -> Path:
        """The file with the rollouts of the next step."""
        return self.folder / f"{self.trainer.state.global_step:06d}.parquet"

    def digest(self, model: torch.nn.Module) -> str:
        """Return the digest of the trainer's model, or of a copy of it, in the sampler's precision."""
        return weights_digest(model, self.dtype, sharded=self.skeleton is not None)

    def forget_step(self) -> None:
        """Remove the rollouts of this step, so that a resumed training draws them again."""
        if self.is_main:
            self.shard.unlink(missing_ok=True)

    def of_step(self, ids: Sequence[str]) -> list[list[Rollout]]:
        """Return the groups of the next step in all processes. `ids`: the prompts of this process."""
        step = self.trainer.state.global_step
        shard = self.shard
        policy = f"step {step}, weights {self.digest(self.trainer.model)}"
        found = read_shard(shard, policy) if self.is_main else None
        [rollouts] = broadcast_object_list([found])
        if not rollouts:
            temperatures = [self.cfg.temperature] * self.cfg.completions
            seed = int(content_id(self.cfg.seed, step), 16)
            rollouts = gather_object(self.complete(ids, temperatures, seed, policy))
            if self.is_main:
                self.folder.mkdir(parents=True, exist_ok=True)
                save(shard, rollouts, Rollout)
        size = self.cfg.completions
        return [rollouts[start : start + size] for start in range(0, len(rollouts), size)]

    def held_out(self, ids: Sequence[str]) -> list[Rollout]:
        """Return a greedy answer to each of these prompts, which are the same in every process."""
        args = self.trainer.args
        digest = self.digest(self.trainer.model)
        ids_here = ids[args.process_index :: args.world_size]
        answers = gather_object(self.complete(ids_here, [0.0], 0, digest))
        by_prompt = {answer.prompt_id: answer for answer in answers}
        return [by_prompt[name] for name in ids if name in by_prompt]

    def complete(
        self, ids: Sequence[str], temperatures: list[float], seed: int, policy: str
    ) -> list[Rollout]:
        """Return a completion per temperature of every prompt, in order, with rewards. `policy` ends with the digest
        of the trainer's weights.
        Raise UserError if the sampler's weights are others, or too many completions have no reward."""
        machine.give_back_gpu_memory()
        allocator.return_freed_memory()
        model = inference_copy(self.trainer.model, self.cfg.precision, self.skeleton)
        digest = self.digest(model)
        if not policy.endswith(digest):
            problem = f"the sampler has the weights {digest}, but the trainer is at {policy}"
            result = "Its completions would teach older weights, so nothing is published"
            raise UserError(f"align=grpo: {problem}. {result}. Type the same command again.")
        sampler = self.open_sampler(model)
        requests = [
            Request(i, self.prompts[i].messages, self.token_ids[i], temperatures, seed) for i in ids
        ]
        drawn = {request.id: completions for request, completions in sampler.complete(requests)}
        source = f"the sampler {sampler.name}"
        stop_ids = self.contract.stop_ids
        vocabulary = model.config.get_text_config().vocab_size
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

    def open_sampler(self, model: PreTrainedModel) -> Sampler:
        """Return a sampler of these weights, which `inference_copy` has returned."""
        policy = self.trainer.model
        if self.engine and isinstance(policy, PeftModel):
            return self.engine.load(merged_copy(policy, self.cfg.precision))
        if self.engine:
            return self.engine.load(model)
        if has_only_attention(model):  # Mamba's layers read the weights of others
            prepack(model, ROLLOUT_ROWS)
        return HFSampler.of(
            model, self.contract.stop_ids, self.cfg.max_new_tokens, 1.0, ROLLOUT_ROWS
        )

    def add_rewards(self, prompts: list[Example], rollouts: list[Rollout]) -> list[Rollout]:
        """Score the rollouts in place, and return them. One without a finite score gets an error and no reward. A
        truncated one is not judged: its reward is the floor of its group, or none if no completion has one."""
        ended = [r for r in rollouts if r.finish_reason == "stop"]
        to_judge = {r.prompt_id for r in ended}
        pool = [prompt for prompt in prompts if prompt.id in to_judge]
        # Every process judges, also if none of its rollouts ended: labelers may gather figures of the whole step.
        judgements = {each.candidate_id: each for each in self.judge(pool, ended)}
        rewards_by_prompt: dict[str, list[float]] = {r.prompt_id: [] for r in rollouts}
        for rollout in ended:
            judgement = judgements.get(rollout.candidate_id)
            if judgement and judgement.score is not None and isfinite(judgement.score):
                rollout.reward = float(judgement.score)
                rewards_by_prompt[rollout.prompt_id].append(rollout.reward)
            else:
                rollout.error = (judgement and judgement.error) or "the labeler gave no score"
        unscored = [r for r in ended if r.reward is None]
        limit = self.cfg.label.max_failed
        if len(unscored) > limit * len(ended):
            problem = f"{len(unscored)} of {len(ended)} completions of a step have no reward"
            way_out = "Remove the cause; the same command then resumes. A higher limit starts anew."
            first = unscored[0]
            row = self.prompts[first.prompt_id].opening
            raise UserError(
                f'{self.cfg.label.block}.max_failed={limit:g}: {problem}, because: {first.error} (prompt "{row}"). {way_out}'
            )
        floors = floors_by_prompt(rewards_by_prompt, self.relative)
        for rollout in rollouts:
            if rollout.finish_reason != "stop":
                rollout.reward = floors.get(rollout.prompt_id)
        return rollouts


def read_shard(shard: Path, policy: str) -> list[Rollout] | None:
    """Return a step's rollouts if an earlier attempt drew them from the same weights, else None."""
    if not shard.exists():
        return None
    try:
        rollouts = load(shard, Rollout)
    except Damaged as error:
        move_aside(shard, error)
        return None
    if {rollout.policy for rollout in rollouts} != {policy}:
        return None
    return rollouts


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


def describe_step(groups: Sequence[list[Rollout]]) -> dict[str, float]:
    """Return the figures of a step's rollouts: mean reward with its standard error over prompts, groups with different
    rewards, mean tokens, shares that ended their turn and that repeat themselves, and completions without a reward."""
    means = list[float]()
    live = 0
    rollouts = list[Rollout]()
    for group in groups:
        rollouts += group
        rewards = [rollout.reward for rollout in group if rollout.reward is not None]
        live += len({*rewards}) > 1
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


def reward_message(steps: Sequence[dict[str, Any]], held_out: Sequence[list[float | None]]) -> str:
    """Return a warning if the reward rose from the first to the last fifth of the steps, but no gain on held-out prompts
    is shown; else ''. `held_out`: rewards by evaluation."""
    if not held_out:
        return "no held-out prompt was asked, so a gain is not shown. Set grpo.evaluations, or add validation prompts."
    fifth = max(1, len(steps) // 5)
    rewards = [step["reward"] for step in steps]
    first = rewards[:fifth]
    last = rewards[-fifth:]
    has_risen = word_of(difference(first, last)) is Word.better
    if not has_risen or has_gain(held_out[0], held_out[-1]):
        return ""
    rise = f"the reward rose from {fmean(first):.3f} to {fmean(last):.3f}"
    cause = "The model may know its prompts by heart, or what the labeler overrates"
    way_out = "add prompts, or set grpo.beta=0.04"
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
