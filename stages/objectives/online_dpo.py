"""Online DPO (arXiv:2402.04792): pairs of a prompt's draws, and DPO's loss on them.

Of the completions that end, the best is chosen over the worst, then the next best over the next worst, as long as their
rewards differ. The reference is the SFT model. In a pool of several steps (semi-online, arXiv:2506.21495) later steps
learn from pairs that earlier weights drew: the loss is one of given pairs, and reads no π_old."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from stages.config.blocks.draws import Drawing
from stages.config.blocks.online_dpo import OnlineDPO
from stages.config.choices import Forward
from stages.config.errors import UserError
from stages.evaluation.relative_scores import have_difference
from stages.models.loading import load_model
from stages.models.packing import pack_pairs
from stages.models.scoring import allowed_gap, install_scoring, pair_log_probs
from stages.objectives.dpo import StoredReferenceTrainer, cut_at_difference, trl_row
from stages.objectives.first_step import Scores
from stages.store.records import PairLogProbs
from stages.training.drawing_trainer import DrawingTrainer
from stages.training.micro_batches import Batch
from stages.training.rollouts import Rollout, ended_with_reward
from stages.training.token_rows import Row


def pairs_of_draws(group: Sequence[Rollout], most: int) -> list[tuple[Rollout, Rollout]]:
    """Return at most so many pairs (chosen, rejected) of a prompt's completions that ended, no completion twice."""
    ranked = sorted(ended_with_reward(group), key=reward_of, reverse=True)
    pairs = list[tuple[Rollout, Rollout]]()
    for place in range(min(most, len(ranked) // 2)):
        chosen = ranked[place]
        rejected = ranked[-1 - place]
        if have_difference([reward_of(chosen), reward_of(rejected)]):
            pairs.append((chosen, rejected))
    return pairs


def reward_of(draw: Rollout) -> float:
    assert draw.reward is not None
    return draw.reward


class OnlinePairTrainer(DrawingTrainer, StoredReferenceTrainer):
    """DPO's trainer on pairs of draws, whose reference is scored when a step has drawn them. A step's loss is the mean
    over its pairs in all processes."""

    cfg: OnlineDPO  # type: ignore[assignment]
    share_of_step = (
        1.0  # the share of this process's pairs in the step's, times the number of processes
    )
    is_idle = False  # True: the micro-batch has a pair that only keeps this process busy

    @classmethod
    def load_start(cls, policy: Path, cfg: Drawing, device: torch.device) -> PreTrainedModel:
        model = load_model(policy, cfg.start_weights, device)
        pack_pairs(model)
        return model

    @classmethod
    def load_reference(cls, policy: Path, cfg: Drawing, device: torch.device) -> PreTrainedModel:
        model = load_model(policy, cfg.start_weights, device)
        return install_scoring(model, Forward.shared_prefix).requires_grad_(False)

    def compared(self, group: list[Rollout]) -> list[Rollout]:
        return ended_with_reward(group)

    def teaches(self, group: list[Rollout]) -> bool:
        return bool(pairs_of_draws(group, self.cfg.pairs))

    def step_rows(self, groups: Sequence[list[Rollout]]) -> list[Row]:
        """Return a step's pairs as rows of `trl_row`, still without log-probs of the reference."""
        rows = list[Row]()
        for group in groups:
            for chosen, rejected in pairs_of_draws(group, self.cfg.pairs):
                pair = PairLogProbs(
                    id=chosen.candidate_id,
                    prompt_ids=self.rollouts.token_ids[chosen.prompt_id],
                    chosen_ids=chosen.token_ids or [],
                    rejected_ids=rejected.token_ids or [],
                    chosen_logps=[],
                    rejected_logps=[],
                )
                if self.cfg.first_difference:
                    pair = cut_at_difference(pair)
                rows.append({"pair": pair, **trl_row(pair, self.cfg.trainer.ld_alpha)})
        return rows

    def idle_row(self, row: Row) -> Row:
        return {**row, "is_idle": True}

    def count_rows(self, rows: list[Row]) -> None:
        """Count nothing: TRL counts the tokens of a batch."""

    def finish_rows(self, rows: list[Row], of_step: list[Row]) -> list[Row]:
        """Return the rows of this process with the reference's log-probs. Before the first update, raise UserError if
        the policy's are others."""
        with self.reference_model() as reference:
            scores = self.score_rows(rows, reference)
        for row, (chosen, rejected) in zip(rows, scores, strict=True):
            row["pair"].chosen_logps = chosen
            row["pair"].rejected_logps = rejected
        if self.state.global_step == 0:
            self.require_log_ratio_0(rows)
        chosen_tokens = [float(len(row["pair"].chosen_ids)) for row in of_step]
        self._chosen_per_pair = torch.tensor(fmean(chosen_tokens), device=self.args.device)
        # processes average their gradients, and may have unequal numbers of pairs
        self.share_of_step = len(rows) * self.args.world_size / len(of_step)
        return [row | trl_row(row["pair"], self.cfg.trainer.ld_alpha) for row in rows]

    def micro_batches(self, rows: list[Row]) -> list[list[Row]]:
        """Divide the pairs as DPO does, into equally many parts in each process. A part without a pair has an idle one."""
        parts = super().micro_batches(rows)
        most = max(gather_object([len(parts)]))
        parts += [list[Row]()] * (most - len(parts))
        return [part or [self.idle_row(rows[0])] for part in parts]

    def collate(self, rows: list[Row]) -> Batch:
        """Return DPO's batch, and whether its only pair is idle."""
        return super().collate(rows) | {"is_idle": rows[0].get("is_idle", False)}

    @torch.no_grad()
    def score_rows(self, rows: list[Row], model: PreTrainedModel) -> list[Scores]:
        """Return the log-probs of pairs under a model, in micro-batches, of which all processes have equally many."""
        pad_id = self.processing_class.pad_token_id
        scores = dict[str, Scores]()
        self.model.eval()
        for part in self.micro_batches(rows):
            pairs = [row["pair"] for row in part]
            scored = pair_log_probs(model, pairs, pad_id, self.cfg.precision)
            scores |= zip([pair.id for pair in pairs], scored, strict=True)
        self.model.train()
        return [scores[row["pair"].id] for row in rows]

    def require_log_ratio_0(self, rows: list[Row]) -> None:
        """Raise UserError if the policy before the first update is not the reference, by their log-probs of pairs."""
        reference = list[float]()
        policy = list[float]()
        scores = self.score_rows(rows, self.model)
        for row, (chosen, rejected) in zip(rows, scores, strict=True):
            reference += [*row["pair"].chosen_logps, *row["pair"].rejected_logps]
            policy += [*chosen, *rejected]
        gap = fmean(abs(a - b) for a, b in zip(policy, reference, strict=True))
        allowed = allowed_gap(self.cfg.precision, fmean(map(abs, reference)))
        if not gap <= allowed:
            raise UserError(
                f"align=online_dpo: before the first step the policy and its reference differ by {gap:.2g} nats per token "
                f"on {len(rows)} pairs ({allowed:.2g} is allowed in {self.cfg.precision}). Both are the SFT model: build "
                "it again by rebuild=sft."
            )

    def compute_loss(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of some pairs with its share in the step's, which is 0 of an idle pair."""
        self.is_idle = inputs.pop("is_idle")
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        share = 0.0 if self.is_idle else self.share_of_step
        self.is_idle = False
        return loss * share

    def count_terms(self, batch: Batch) -> dict[str, int | torch.Tensor]:
        """Return DPO's counts, all 0 for an idle pair."""
        counts = super().count_terms(batch)
        return dict.fromkeys(counts, 0) if self.is_idle else counts

    def gather_rows(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all processes, without those of an idle pair."""
        if self.is_idle:
            values = values[:0] if values.ndim else torch.zeros_like(values)
        return super().gather_rows(values)
