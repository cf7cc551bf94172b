"""What a trainer of TRL's does in our way, whatever its objective: which rows it sees, how its learning rate starts,
and that an evaluation keeps the loss of every row."""

from typing import Any

import torch
from transformers import Trainer

from stages.models.scoring import rounded_once
from stages.training import warm_up
from stages.training.batches import InTurn, Turns

ROW_LOSSES = "row_losses"  # in the trainer's log, and so in its checkpoints, beside the eval_loss that is their mean


class PlumblineTrainer(Trainer):
    """`turns` has the rows of every epoch, as indices into `train_dataset`."""

    def __init__(self, *args: Any, turns: Turns, **kwargs: Any):
        self.turns, self.row_losses = turns, list[torch.Tensor]()
        self.lr_scheduler: Any  # set by Trainer
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> InTurn:
        return InTurn(self.turns, lambda: self.state.global_step)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        asked = self.args.warmup_steps
        if self.lr_scheduler is not None or not (steps := warm_up.climb(asked, num_training_steps)):
            return super().create_scheduler(num_training_steps, optimizer)
        self.args.warmup_steps = steps + 1
        longer = super().create_scheduler(num_training_steps + 1, optimizer)
        self.args.warmup_steps = asked
        self.lr_scheduler = warm_up.without_first(longer, steps)
        return self.lr_scheduler

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        loss, *rest = super().prediction_step(*args, **kwargs)
        self.row_losses.append(loss)  # rows are evaluated one by one
        return loss, *rest

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.row_losses.clear()
        with rounded_once(self.args.device):
            output = super().evaluation_loop(*args, **kwargs)
        mine = torch.stack(self.row_losses).float()  # the processes take the rows by turns
        losses = self.accelerator.gather(mine).view(-1, len(mine)).T.flatten()
        output.metrics[ROW_LOSSES] = [round(loss, 6) for loss in losses.tolist()]
        return output
