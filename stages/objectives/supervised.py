"""TRL's SFTTrainer, its steps in micro-batches by token budget."""

from itertools import accumulate

import torch
from trl import SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from stages.training.micro_batches import MicroBatches, Row, of_row
from stages.training.step_metrics import Batch


class SupervisedTrainer(MicroBatches, SFTTrainer):
    """`train_dataset` holds `input_ids` and `labels`; packed, `seq_lengths` too."""

    @property
    def padded(self) -> bool:
        return not self.data_collator.padding_free

    def tokens(self, row: Row) -> int:
        return len(row["input_ids"])

    def weight(self, metric: str, batch: Batch) -> int:
        return int((batch["labels"][:, 1:] != -100).sum())

    def scored(self, model: torch.nn.Module, rows: list[Row]) -> list[FusedCausalLMOutput]:
        output = model(**self._prepare_inputs(self.data_collator(rows)), use_cache=False, fused_lm_head=True)
        lengths = [len(row["input_ids"]) for row in rows]
        if self.padded:
            return [of_row(output, ([i], slice(n - 1))) for i, n in enumerate(lengths)]
        return [
            of_row(output, ([0], slice(end - n, end - 1))) for n, end in zip(lengths, accumulate(lengths), strict=True)
        ]
