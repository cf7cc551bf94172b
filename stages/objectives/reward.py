"""TRL's RewardTrainer on token ids that are given: the log-odds that chosen is better than rejected are the difference
of their rewards (Bradley & Terry 1952, Biometrika 39; as a loss, arXiv:2203.02155, Eq. 1)."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl import RewardTrainer

from stages.models.packing import ATTENTION, attention_of
from stages.models.scoring import autocast, rounded_once
from stages.store.records import PairLogProbs
from stages.training.micro_batches import Batch, MicroBatches, of_row
from stages.training.token_rows import Row

EXTREMES = ("min_reward", "max_reward")


class PairwiseRewardTrainer(MicroBatches, RewardTrainer):
    """`train_dataset` and `eval_dataset` hold rows of `trl_row`."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """TRL leaves rows out here and says nothing: all that it is given fit."""
        return dataset

    @property
    def padded(self) -> bool:
        return attention_of(self.model) != ATTENTION

    def tokens(self, row: Row) -> int:
        chosen, rejected = row["chosen_ids"], row["rejected_ids"]
        if self.padded:
            return 2 * max(len(chosen), len(rejected))
        return len(chosen) + len(rejected) - shared(chosen, rejected)

    def weight(self, metric: str, batch: Batch) -> int:
        return len(batch["input_ids"]) // 2

    def scored(self, model: torch.nn.Module, rows: list[Row]) -> list[SequenceClassifierOutputWithPast]:
        batch = self._prepare_inputs(self.data_collator(rows))
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        return [of_row(output, ([i, len(rows) + i],)) for i in range(len(rows))]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's, without the extremes of the rewards: their mean over micro-batches would depend on the division."""
        found = super().compute_loss(*args, **kwargs)
        for name in EXTREMES:
            del self._metrics["train" if self.model.training else "eval"][name]
        return found

    @torch.no_grad()
    def rewards(self, rows: Sequence[Row]) -> list[tuple[float, float]]:
        """The rewards of chosen and of rejected for every row, many to a forward."""
        found, device = dict[int, tuple[float, float]](), self.args.device
        self.model.eval()
        with rounded_once(device), autocast(self.cfg.precision, device):
            for part in self.evaluated_together([*rows]):
                for row, output in zip(part, self.scored(self.model, part), strict=True):
                    chosen, rejected = output.logits[:, 0].tolist()
                    found[id(row)] = chosen, rejected
        return [found[id(row)] for row in rows]


def shared(a: list[int], b: list[int]) -> int:
    """How many tokens two sequences begin with alike: what `models/packing.py` reads once."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def trl_row(pair: PairLogProbs, margin: float | None) -> Row:
    """The token ids of prompt and completion; and by how much more the rewards are to differ, where that is asked. TRL
    would take a column `margin` wherever there is one."""
    row: Row = {"chosen_ids": pair.prompt_ids + pair.chosen_ids, "rejected_ids": pair.prompt_ids + pair.rejected_ids}
    return row if margin is None else {**row, "margin": margin}
