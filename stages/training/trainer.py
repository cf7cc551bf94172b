"""What a trainer of TRL's does in our way, whatever its objective: which rows it sees, how its learning rate starts,
and that an evaluation keeps the loss of every row."""

import math
from typing import Any

import torch
from transformers import Trainer

from stages.models.scoring import rounded_once
from stages.training.batches import InTurn, Turns

ROW_LOSSES = "row_losses"  # in the trainer's log, and so in its checkpoints, beside the eval_loss that is their mean
LEAST = 4  # steps of a warm-up: a share of few steps takes the learning rate from 0 to its highest in one


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
        if self.lr_scheduler is not None or not (steps := climb(asked, num_training_steps)):
            return super().create_scheduler(num_training_steps, optimizer)
        self.args.warmup_steps = steps + 1
        longer = super().create_scheduler(num_training_steps + 1, optimizer)
        self.args.warmup_steps = asked
        self.lr_scheduler = without_first(longer, steps)
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


def climb(asked: float, steps: int) -> int:
    """Over how many of `steps` the rate climbs, where `warmup_steps` asks for a share that comes to fewer than LEAST:
    over LEAST, or half of all. 0 where what is asked for stands: a number of steps, none, a share of more steps."""
    return 0 if not 0 < asked < 1 or asked * steps > LEAST - 1 else min(LEAST, math.ceil(steps / 2))


def without_first(longer: Any, climbing: int) -> Any:
    """A schedule from its second step on: transformers' begin at rate 0, and a short training has no step to lose. It
    climbs as a square does. Adam's first step divides each gradient by its own size, rounding errors included: at a
    quarter of the rate they made weights differ by 1.4e-5 between micro-batches, at a sixteenth by 4.6e-6. A schedule
    that is no function of the step (`reduce_lr_on_plateau`) has no warm-up, and stays as it is."""
    if not isinstance(longer, torch.optim.lr_scheduler.LambdaLR):
        return longer
    later: list[Any] = [
        lambda step, rate=rate: rate(step + 1) * (1 if rate(0) else min(1, (step + 1) / (climbing + 1)))
        for rate in longer.lr_lambdas
    ]
    return torch.optim.lr_scheduler.LambdaLR(longer.optimizer, later)
