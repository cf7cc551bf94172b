"""A trainer of TRL's, of any objective, that chooses its rows, warms up short trainings and keeps rows' losses.

The losses stand in the trainer's log, and so in every checkpoint: a resumed training knows how it began."""

import math
from statistics import fmean
from typing import Any

import torch
from transformers import Trainer

from stages.config.blocks.training import Training
from stages.config.errors import UserError
from stages.evaluation.intervals import paired
from stages.models.scoring import round_weights_once
from stages.store.workspace import StageDir
from stages.training.batches import EpochSampler, EpochSchedule
from stages.training.callbacks import format_losses, lower_rate_advice

ROW_LOSSES = "row_losses"  # in the trainer's log, and so in its checkpoints, beside the eval_loss that is their mean
MOST_RISE = 0.05  # of the validation loss: more of it than this, and than its noise, and nothing is published
LEAST_WARMUP = 4  # steps of a warm-up: a share of few steps takes the learning rate from 0 to its highest in one


class PlumblineTrainer(Trainer):
    """`turns` has the rows of every epoch, as indices into `train_dataset`."""

    def __init__(self, *args: Any, schedule: EpochSchedule, **kwargs: Any):
        self.turns, self.row_losses = schedule, list[torch.Tensor]()
        self.lr_scheduler: Any  # set by Trainer
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return EpochSampler(self.turns, lambda: self.state.global_step)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        warmup = self.args.warmup_steps
        if self.lr_scheduler is not None or not (steps := count_warmup_steps(warmup, num_training_steps)):
            return super().create_scheduler(num_training_steps, optimizer)
        self.args.warmup_steps = steps + 1
        longer_schedule = super().create_scheduler(num_training_steps + 1, optimizer)
        self.args.warmup_steps = warmup
        self.lr_scheduler = skip_first_step(longer_schedule, steps)
        return self.lr_scheduler

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        loss, *outputs = super().prediction_step(*args, **kwargs)
        self.row_losses.append(loss)  # rows are evaluated one by one
        return loss, *outputs

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.row_losses.clear()
        with round_weights_once(self.args.device):
            output = super().evaluation_loop(*args, **kwargs)
        losses_here = torch.stack(self.row_losses).float()  # the processes take the rows by turns
        losses = self.accelerator.gather(losses_here).view(-1, len(losses_here)).T.flatten()
        output.metrics[ROW_LOSSES] = [round(loss, 6) for loss in losses.tolist()]
        return output


def count_warmup_steps(warmup: float, steps: int) -> int:
    """Over how many of `steps` the rate climbs, where `warmup_steps` asks for a share that comes to fewer than LEAST:
    over LEAST, or half of all. 0 where what is asked for stands: a number of steps, none, a share of more steps."""
    return 0 if not 0 < warmup < 1 or warmup * steps > LEAST_WARMUP - 1 else min(LEAST_WARMUP, math.ceil(steps / 2))


def skip_first_step(longer_schedule: Any, warmup_steps: int) -> Any:
    """A schedule from its second step on: transformers' begin at rate 0, and a short training has no step to lose. It
    climbs as a square does. Adam's first step divides each gradient by its own size, rounding errors included: at a
    quarter of the rate they made weights differ by 1.4e-5 between micro-batches, at a sixteenth by 4.6e-6. A schedule
    that is no function of the step (`reduce_lr_on_plateau`) has no warm-up, and stays as it is."""
    if not isinstance(longer_schedule, torch.optim.lr_scheduler.LambdaLR):
        return longer_schedule
    factors: list[Any] = [
        lambda step, factor=rate: factor(step + 1) * (1 if factor(0) else min(1, (step + 1) / (warmup_steps + 1)))
        for rate in longer_schedule.lr_lambdas
    ]
    return torch.optim.lr_scheduler.LambdaLR(longer_schedule.optimizer, factors)


class EvalHistory:
    """The evaluations of a training, the first before its first step."""

    def __init__(self, trainer: Trainer):
        self.by_step: dict[int, dict[str, Any]] = {e["step"]: e for e in trainer.state.log_history if ROW_LOSSES in e}

    @property
    def losses(self) -> list[float]:
        return [entry["eval_loss"] for entry in self.by_step.values()]

    def row_losses(self, step: int) -> list[float]:
        """Losses of a step's evaluation, in the dataset's order; several times, if there are several processes."""
        return list(self.by_step[step][ROW_LOSSES])


def risen_loss_message(history: EvalHistory, rows: int, cfg: Training) -> str:
    """A warning where held-out pairs' losses ended above those before the first step by more than noise; else ''."""
    if not history.by_step:
        return ""
    change = paired(history.row_losses(0)[:rows], history.row_losses(max(history.by_step))[:rows])
    if not change.low > 0:
        return ""
    return (
        f"held-out loss {format_losses(history.losses)}: it ended higher than before the first step, by "
        f"{change.per('pair')}. {lower_rate_advice(cfg)}, or {cfg.block}.epochs."
    )


def read_best_losses(history: EvalHistory, step: int, rows: int, cfg: Training, out: StageDir) -> list[float]:
    """Return the validation rows' losses at the step that is published, compared with those before the first.

    Raises:
        UserError: where they rose by more than RISE, and by more than their noise. A smaller rise only warns: rows
            that the model itself wrote start where it is hardly to be bettered.
    """
    before, after = history.row_losses(0)[:rows], history.row_losses(step)[:rows]
    change, start_loss = paired(before, after), fmean(before)
    if change.mean <= 0:
        return after
    message = (
        f"validation loss {format_losses(history.losses)}: at its best, after step {step}, it is higher than before the "
        f"first step, by {change.per('row')}"
    )
    if change.mean > MOST_RISE * start_loss and change.low > 0:
        raise UserError(
            f"{message}: training made the model worse, and nothing is published. {lower_rate_advice(cfg)}."
        )
    out.warn(f"{message}. {lower_rate_advice(cfg)}, unless these rows are the model's own.")
    return after
