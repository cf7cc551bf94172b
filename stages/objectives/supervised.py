"""TRL's SFTTrainer, its steps in micro-batches by token budget."""

from trl import SFTTrainer

from stages.training.micro_batches import MicroBatches, Row
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
