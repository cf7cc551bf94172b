"""A TRL trainer of any objective that chooses its rows and warms up short trainings, and what its losses say."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from stages.config.blocks.objective import Training
from stages.config.errors import UserError
from stages.models.scoring import round_weights_once
from stages.store.workspace import StageDir
from stages.training.batches import EpochSampler, EpochSchedule
from stages.training.callbacks import format_losses, lower_rate_advice

# after a larger relative rise of the validation loss nothing is published
MOST_RISE = 0.05
# steps; a share of few steps would raise the learning rate from 0 to its highest value in one step
LEAST_WARMUP = 4


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every probability of dropout to 0: of modules, as TRL's `disable_dropout_in_model` does, and those that OPT,
    Phi or StarCoder2 keep as numbers. Masks are drawn per micro-batch, so its division would change results."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        vars(module).update(
            {
                name: 0.0
                for name, v in vars(module).items()
                if "drop" in name and isinstance(v, float)
            }
        )


class PlumblineTrainer(Trainer):
    """A trainer with a schedule: the rows of every epoch, as indices into `train_dataset`. Unless TRL's argument
    `disable_dropout` is false, it trains without dropout."""

    def __init__(self, *args: Any, schedule: EpochSchedule, **kwargs: Any):
        self.schedule = schedule
        self.lr_scheduler: Any  # Trainer sets it
        self.cfg: Training  # MicroBatches sets both
        self.out: StageDir
        super().__init__(*args, **kwargs)
        if getattr(self.args, "disable_dropout", True):
            disable_dropout(self.model)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        def steps() -> tuple[int, int]:
            return self.state.global_step, self.state.max_steps

        return EpochSampler(self.schedule, steps)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        warmup = self.args.warmup_steps
        if warmup >= num_training_steps > 1:
            key = f"{self.cfg.block}.trainer.warmup_steps={warmup:g}"
            self.out.warn(
                f"{key}: training ends before, after {num_training_steps} steps, at a low learning rate."
            )
        steps = count_warmup_steps(warmup, num_training_steps)
        if self.lr_scheduler is not None or not steps:
            return super().create_scheduler(num_training_steps, optimizer)
        self.args.warmup_steps = steps + 1
        longer_schedule = super().create_scheduler(num_training_steps + 1, optimizer)
        self.args.warmup_steps = warmup
        self.lr_scheduler = skip_first_step(longer_schedule, steps)
        return self.lr_scheduler

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> Any:
        with round_weights_once(self.args.device):
            return super().evaluation_loop(dataloader, *args, **kwargs)


def count_warmup_steps(warmup: float, steps: int) -> int:
    """Return the steps of a warm-up whose `warmup_steps` is a share of fewer than LEAST_WARMUP steps: LEAST_WARMUP, or
    half of all. Return 0 if `warmup_steps` is used as it is: a number of steps, 0, or a larger share."""
    if not 0 < warmup < 1 or warmup * steps > LEAST_WARMUP - 1:
        return 0
    return min(LEAST_WARMUP, math.ceil(steps / 2))


def skip_first_step(longer_schedule: Any, warmup_steps: int) -> Any:
    """Return a schedule from its second step on, with a quadratic warm-up. transformers' schedules begin with learning
    rate 0, and a short training cannot waste a step. Adam's first step divides each gradient by its size, rounding
    errors included. At a quarter of the learning rate these made weights differ by 1.4e-5 between micro-batches, at a
    sixteenth by 4.6e-6. A schedule that is not a function of the step (`reduce_lr_on_plateau`) stays as it is."""
    if not isinstance(longer_schedule, torch.optim.lr_scheduler.LambdaLR):
        return longer_schedule

    def from_second_step(factor: Callable[[int], float]) -> Callable[[int], float]:
        def later(step: int) -> float:
            if factor(0):  # no warm-up
                return factor(step + 1)
            return factor(step + 1) * min(1, (step + 1) / (warmup_steps + 1))

        return later

    factors = [from_second_step(factor) for factor in longer_schedule.lr_lambdas]
    return torch.optim.lr_scheduler.LambdaLR(longer_schedule.optimizer, factors)


def evaluated_losses(trainer: Trainer) -> list[float]:
    """Return the held-out loss of every evaluation; the first is before the first step."""
    losses = list[float]()
    for entry in trainer.state.log_history:
        if "eval_loss" in entry:
            losses.append(entry["eval_loss"])
    return losses


def has_risen(before: float, after: float) -> bool:
    return after - before > MOST_RISE * abs(before)


def risen_loss_message(trainer: Trainer, cfg: Training) -> str:
    """Return a warning if the held-out loss rose by more than MOST_RISE since before the first step, else ''."""
    losses = evaluated_losses(trainer)
    if not losses or not has_risen(losses[0], losses[-1]):
        return ""
    rise = f"held-out loss {format_losses(losses)}: it rose during training"
    return f"{rise}. {lower_rate_advice(cfg)}, or lower {cfg.block}.epochs."


def validate_best_loss(
    trainer: Trainer, best: dict[str, float], cfg: Training, out: StageDir
) -> None:
    """Compare the lowest validation loss with the one before the first step. Raise UserError if it is higher by more
    than MOST_RISE. A smaller rise only warns: on rows sampled from the model itself, the start is hardly to be
    improved."""
    losses = evaluated_losses(trainer)
    start = losses[0]
    lowest = best["eval_loss"]
    if lowest <= start:
        return
    message = (
        f"validation loss {format_losses(losses)}: its lowest value, after step {best['step']}, "
    )
    message += f"is higher than before the first step, by {lowest - start:.3g}"
    if has_risen(start, lowest):
        raise UserError(
            f"{message}. Training made it worse, and nothing is published. {lower_rate_advice(cfg)}."
        )
    out.warn(f"{message}. {lower_rate_advice(cfg)}, unless the model itself wrote these rows.")
