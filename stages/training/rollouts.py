"""Rollouts: completions of a step's prompts by the model in training, with rewards.

The noise depends on prompt, candidate, seed and step alone. Each step's rollouts are saved with the digest of the
weights that wrote them. So a resumed training trains on the same rollouts, and draws none again. Before every step the
sampler's weights are compared with the trainer's: rollouts of older weights would train in a wrong direction.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import Trainer

from stages.config.blocks.training import GRPO
from stages.config.errors import UserError
from stages.hardware import machine
from stages.models.contract import Contract
from stages.models.loading import sampling_weights, torch_dtype
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import Completion, Request
from stages.store.records import Candidate, Example, Judgement, content_id, load, save
from stages.store.sealed_json import Damaged, move_aside
from stages.store.workspace import SCRATCH, StageDir
from stages.training.samples import inference_copy

ROWS = 256  # completions that are decoded at once, or fewer if memory is short
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per element


@dataclass
class Rollout(Candidate):
    """A completion with its reward, or with the reason why it has none. `policy` names the step whose weights wrote
    it, and their digest."""

    reward: float | None = None
    error: str | None = None


Judge = Callable[[list[Example], list[Rollout]], Iterable[Judgement]]


class Rollouts:
    """Draws the rollouts of a trainer's steps, or reads them from the shards of an earlier attempt. With several
    processes, each completes its own prompts, and all of them get all rollouts."""

    def __init__(
        self,
        trainer: Trainer,
        cfg: GRPO,
        contract: Contract,
        prompts: Iterable[tuple[Example, list[int]]],
        judge: Judge,
        out: StageDir,
    ):
        self.trainer, self.cfg, self.contract, self.judge = trainer, cfg, contract, judge
        self.prompts = {example.id: (example, ids) for example, ids in prompts}
        self.folder, self.is_main = out / SCRATCH / "rollouts", out.is_main
        self.dtype = torch_dtype(sampling_weights(cfg.precision))

    def of_step(self, ids: Sequence[str]) -> list[list[Rollout]]:
        """Return the groups of the next step in all processes. `ids`: the prompts of this process."""
        step, digest = self.trainer.state.global_step, weights_digest(self.trainer.model, self.dtype)
        policy, shard = f"step {step}, weights {digest}", self.folder / f"{step:06d}.parquet"
        [stored] = broadcast_object_list([read_shard(shard, policy) if self.is_main else None])
        if not stored:
            seed = int(content_id(self.cfg.seed, step), 16)
            stored = gather_object(self.complete(ids, [self.cfg.temperature] * self.cfg.completions, seed, policy))
            if self.is_main:
                self.folder.mkdir(parents=True, exist_ok=True)
                save(shard, stored, Rollout)
        size = self.cfg.completions
        return [stored[start : start + size] for start in range(0, len(stored), size)]

    def held_out(self, ids: Sequence[str]) -> list[Rollout]:
        """Return a greedy answer to each of these prompts, which are the same in every process."""
        rank, world = self.trainer.args.process_index, self.trainer.args.world_size
        digest = weights_digest(self.trainer.model, self.dtype)
        answers = gather_object(self.complete(ids[rank::world], [0.0], 0, f"weights {digest}"))
        return sorted(answers, key=lambda answer: ids.index(answer.prompt_id))

    def complete(self, ids: Sequence[str], temperatures: list[float], seed: int, policy: str) -> list[Rollout]:
        """Return one completion per temperature of every prompt, in order, with rewards. `policy` ends with the digest
        of the trainer's weights.

        Raises:
            UserError: if the sampler's weights are others, or too many completions have no reward.
        """
        if not ids:
            return []
        machine.give_back_gpu_memory()
        model = inference_copy(self.trainer.model, self.cfg.precision)
        if not policy.endswith(digest := weights_digest(model, self.dtype)):
            raise UserError(
                f"grpo: the sampler has the weights {digest}, but the trainer is at {policy}. The completions would "
                "teach older weights. Nothing is published; type the same command again."
            )
        sampler = HFSampler.of(model, self.contract.stop_ids, self.cfg.max_new_tokens, 1.0, ROWS)
        requests = [Request(i, self.prompts[i][0].messages, self.prompts[i][1], temperatures, seed) for i in ids]
        drawn = {request.id: (request, completions) for request, completions in sampler.complete(requests)}
        make = partial(make_rollout, self.contract, policy, sampler.name)
        rollouts = [make(drawn[i][0], place, c) for i in ids for place, c in enumerate(drawn[i][1])]
        self.add_rewards([self.prompts[i][0] for i in ids], rollouts)
        return rollouts

    def add_rewards(self, prompts: list[Example], rollouts: list[Rollout]) -> None:
        """Score the rollouts in place. One without a finite score gets an error and no reward."""
        by_id = {j.candidate_id: j for j in self.judge(prompts, rollouts)}
        for rollout in rollouts:
            judgement = by_id.get(rollout.candidate_id)
            if judgement and judgement.score is not None and isfinite(judgement.score):
                rollout.reward = float(judgement.score)
            else:
                rollout.error = (judgement and judgement.error) or "the labeler gave no score"
        unscored, limit = [r.error for r in rollouts if r.reward is None], self.cfg.label.max_failed
        if len(unscored) > limit * len(rollouts):
            raise UserError(
                f"label.max_failed={limit:g}: {len(unscored)} of {len(rollouts)} completions of a step have no "
                f"reward, because: {unscored[0]}. Remove the cause, or raise the limit; the same command then resumes."
            )


def make_rollout(
    contract: Contract, policy: str, sampler: str, request: Request, place: int, completion: Completion
) -> Rollout:
    """Return a completion as a rollout that no labeler has seen yet."""
    ids = completion.token_ids or []
    return Rollout(
        prompt_id=request.id,
        candidate_id=content_id(request.id, place, ids),
        policy=policy,
        sampler=sampler,
        temperature=request.temperatures[place],
        seed=request.seed_of(place),
        text=contract.text(ids),
        token_ids=ids,
        finish_reason=completion.finish_reason,
        logprob=completion.logprob,
        n_tokens=len(ids),
        tokenizer=contract.digest,
    )


def read_shard(shard: Path, policy: str) -> list[Rollout] | None:
    """Return a step's rollouts if an earlier attempt drew them from the same weights, else None."""
    if not shard.exists():
        return None
    try:
        rollouts = load(shard, Rollout)
    except Damaged as error:
        move_aside(shard, error)
        return None
    return rollouts if all(rollout.policy == policy for rollout in rollouts) else None


@torch.no_grad()
def weights_digest(model: torch.nn.Module, dtype: torch.dtype) -> str:
    """Return a digest of all weights as they are in this type: of the sum of the bits of every parameter, as integers.
    A step changes nearly all sums, and unlike a cryptographic hash they are computed where the weights are."""
    sums = []
    for parameter in model.parameters():
        values = parameter.detach().to(dtype) if parameter.is_floating_point() else parameter.detach()
        sums.append(values.contiguous().view(BITS[values.element_size()]).sum(dtype=torch.int64))
    return content_id(torch.stack(sums).tolist())
