"""A TRL trainer of any objective that chooses its rows, warms up short trainings and stores each row's loss.

Row losses are in the trainer's log, and so in every checkpoint: a resumed training knows those of its start."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from stages.config.blocks.training import Training
from stages.config.errors import UserError
from stages.evaluation.intervals import Means, paired
from stages.models.run_attention import send_tensor
from stages.models.scoring import round_weights_once
from stages.store.workspace import StageDir
from stages.training.batches import EpochSampler, EpochSchedule
from stages.training.callbacks import format_losses, lower_rate_advice

ROW_LOSSES = "row_losses"  # the key in the trainer's log; eval_loss is their mean
# after a larger relative rise of the validation loss, beyond noise, nothing is published
MOST_RISE = 0.05
# steps; a share of few steps would raise the learning rate from 0 to its highest value in one step
LEAST_WARMUP = 4

Figures = TypeVar("Figures")


def keep_here(figures: Figures) -> Figures:
    """Replace accelerate's `gather`, by which TRL adds up a row's metrics over the rows of all processes."""
    return figures


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
        self.row_losses = list[torch.Tensor]()
        self.lr_scheduler: Any  # Trainer sets it
        self.cfg: Training  # MicroBatches sets both
        self.out: StageDir
        self._metrics: dict[str, dict[str, list[float]]]  # TRL sets it
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

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        with patch.multiple(self.accelerator, gather=keep_here, gather_for_metrics=keep_here):
            loss, *outputs = super().prediction_step(*args, **kwargs)
        self.row_losses.append(loss)  # rows are evaluated one by one
        return loss, *outputs

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate every row once: row i in process i modulo their number. accelerate repeats the first rows, so that
        all processes have equally many; repeated rows count nowhere."""
        self.row_losses.clear()
        with round_weights_once(self.args.device):
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        rows: int = len(dataloader.dataset)  # type: ignore[arg-type]
        losses_here = torch.stack(self.row_losses).float()
        losses = self.accelerator.gather(losses_here).view(-1, len(losses_here)).T.flatten()[:rows]
        output.metrics[ROW_LOSSES] = [round(loss, 6) for loss in losses.tolist()]
        self.average_over_rows(self.count_rows_here(rows))
        return output

    def count_rows_here(self, rows: int) -> int:
        """Return how many of the validation rows this process evaluates, those left out that accelerate repeats."""
        return len(range(self.args.process_index, rows, self.args.world_size))

    def average_over_rows(self, rows_here: int) -> None:
        """Replace the values of TRL's validation metrics, of each row in turn, by their mean over all processes' rows.
        In this process the first `rows_here` values count. A row that a metric is not about has NaN."""
        evaluated = self._metrics["eval"]
        sums = list[list[float]]()
        for row in evaluated.values():
            measured = [value for value in row[:rows_here] if not math.isnan(value)]
            sums.append([sum(measured), len(measured)])
        here = send_tensor(torch.tensor(sums, dtype=torch.float64), self.args.device)
        totals = self.accelerator.reduce(here, "sum").tolist()
        for name, (total, count) in zip(evaluated, totals, strict=True):
            evaluated[name] = [total / count if count else math.nan]


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


def evaluations_by_step(trainer: Trainer) -> dict[int, dict[str, Any]]:
    """Return the entries of a training's log with every held-out row's loss; the first is before the first step."""
    return {entry["step"]: entry for entry in trainer.state.log_history if ROW_LOSSES in entry}


def loss_curve(evaluations: dict[int, dict[str, Any]]) -> str:
    return format_losses([evaluation["eval_loss"] for evaluation in evaluations.values()])


def risen_loss_message(trainer: Trainer, cfg: Training, prompts: Sequence[str]) -> str:
    """Return a warning if the held-out pairs' mean loss rose significantly since before the first step, else ''.
    `prompts`: the prompt of each pair; pairs of one prompt count as one draw."""
    evaluations = evaluations_by_step(trainer)
    if not evaluations:
        return ""
    losses = np.array([evaluations[step][ROW_LOSSES] for step in (0, max(evaluations))]).T
    change = Means(losses, prompts, drawn=True, shares=False).difference(1, 0)
    if not change.low > 0:
        return ""
    rise = (
        f"held-out loss {loss_curve(evaluations)}: it rose during training by {change.per('pair')}"
    )
    return f"{rise}. {lower_rate_advice(cfg)}, or lower {cfg.block}.epochs."


def read_best_losses(trainer: Trainer, step: int, cfg: Training, out: StageDir) -> list[float]:
    """Return the validation rows' losses at the published step, and compare them with those before the first step.
    Raise UserError if they rose by more than MOST_RISE and by more than noise. A smaller rise only warns: on rows
    sampled from the model itself, the start is hardly to be improved."""
    evaluations = evaluations_by_step(trainer)
    before = list(evaluations[0][ROW_LOSSES])
    after = list(evaluations[step][ROW_LOSSES])
    change = paired(before, after)
    start_loss = fmean(before)
    if change.mean <= 0:
        return after
    message = f"validation loss {loss_curve(evaluations)}: its lowest value, after step {step}, "
    message += f"is higher than before the first step, by {change.per('row')}"
    if change.mean > MOST_RISE * start_loss and change.low > 0:
        raise UserError(
            f"{message}. Training made it worse, and nothing is published. {lower_rate_advice(cfg)}."
        )
    out.warn(f"{message}. {lower_rate_advice(cfg)}, unless the model itself wrote these rows.")
    return after
