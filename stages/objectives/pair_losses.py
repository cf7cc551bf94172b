"""Trainers of DPO whose loss is not TRL's: SimPO, and a user-defined loss (`dpo.own`)."""

from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from stages.objectives.dpo import PairTrainer
from stages.training.micro_batches import Batch
from stages.training.own_loss import OwnLoss, PairTokens
from stages.training.token_rows import Row


class NotedPairTrainer(PairTrainer):
    """A trainer that adds TRL's figures of pairs to the metrics itself."""

    def note_pairs(
        self, inputs: Batch, output: Any, log_probs: torch.Tensor, rewards: torch.Tensor
    ) -> None:
        """Add TRL's figures of pairs to the metrics. `log_probs` and `rewards`: of all chosen completions, then of all
        rejected ones."""
        tokens = inputs["completion_mask"].sum()
        chosen, rejected = rewards.chunk(2)
        margins = chosen - rejected
        chosen_log_probs, rejected_log_probs = log_probs.chunk(2)
        by_pair = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).to(margins),
            "logps/chosen": chosen_log_probs,
            "logps/rejected": rejected_log_probs,
        }
        for name, figures in by_pair.items():
            self.note(name, figures.sum(), tokens.new_tensor(len(figures)))
        if self.model.training:
            self.note("entropy", output.entropy.sum(), tokens)
            self.note_tokens(inputs["attention_mask"].sum())


class ReferenceFreeTrainer(NotedPairTrainer):
    """SimPO (arXiv:2405.14734), on rows of `trl_row`, of which it reads the token ids.

    A completion's reward is β times the mean log-prob of its tokens, and the loss of a pair is
    -log σ(β/|y_w| log π(y_w|x) - β/|y_l| log π(y_l|x) - γ) (Eq. 6). TRL has it in its experimental CPOTrainer."""

    def reward(self, log_probs: list[float], _reference: list[float]) -> float:
        return self.cfg.beta * fmean(log_probs)

    def compute_loss(self, model: Any, inputs: Batch, **_: Any) -> Any:
        """Return the mean loss of some pairs, and add TRL's figures of pairs to the metrics."""
        output = self.score(model, inputs)
        tokens = inputs["completion_mask"].sum(-1)
        log_probs = output.log_probs.sum(-1)
        chosen, rejected = (self.cfg.beta * log_probs / tokens).chunk(2)
        margins = chosen - rejected
        loss = -logsigmoid(margins - self.cfg.simpo_margin).mean() * self.loss_weights[0]
        self.note_pairs(inputs, output, log_probs, torch.cat([chosen, rejected]))
        return loss


class OwnLossTrainer(NotedPairTrainer):
    """DPO by a user-defined loss, `own_loss`, which is set before training. Rows of `trl_row` with the reference's
    log-prob of every token."""

    own_loss: OwnLoss

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.data_collator = partial(collate_reference, self.data_collator)

    def reward(self, log_probs: list[float], reference: list[float]) -> float:
        return self.cfg.beta * (sum(log_probs) - sum(reference))

    def compute_loss(self, model: Any, inputs: Batch, **_: Any) -> Any:
        """Return the mean loss of some pairs, and add TRL's figures of pairs to the metrics."""
        output = self.score(model, inputs)
        mask = inputs["completion_mask"][:, 1:].bool()
        policy = output.log_probs[:, -mask.shape[1] :]
        reference = inputs["reference_log_probs"]
        loss = self.own_loss(PairTokens.of_halves(policy, reference, mask)).mean()
        log_probs = policy.detach().sum(-1)
        self.note_pairs(inputs, output, log_probs, self.cfg.beta * (log_probs - reference.sum(-1)))
        return loss


def collate_reference(collate: Callable[[list[Row]], Batch], rows: list[Row]) -> Batch:
    """Return a batch with `reference_log_probs` of the tokens behind the first, 0 where nothing is trained."""
    batch = collate(rows)
    mask = batch["completion_mask"][:, 1:].bool()
    values = [value for row in rows for value in row["ref_chosen_tokens"]]
    values += [value for row in rows for value in row["ref_rejected_tokens"]]
    log_probs = torch.zeros(mask.shape)
    log_probs[mask] = torch.tensor(values)
    return batch | {"reference_log_probs": log_probs}
