"""How the validation loss went, row by row. It stands in the trainer's log, and so in every checkpoint: a resumed
training knows how the one before it began."""

from statistics import fmean
from typing import Any

from transformers import Trainer

from stages.config.blocks.training import Training
from stages.config.errors import UserError
from stages.evaluation.intervals import paired
from stages.store.workspace import Work
from stages.training.callbacks import in_one_line, lower_rate
from stages.training.trainer import ROW_LOSSES

RISE = 0.05  # of the validation loss: more of it than this, and than its noise, and nothing is published


class Course:
    """The evaluations of a training, the first before its first step."""

    def __init__(self, trainer: Trainer):
        self.by_step: dict[int, dict[str, Any]] = {e["step"]: e for e in trainer.state.log_history if ROW_LOSSES in e}

    @property
    def losses(self) -> list[float]:
        return [entry["eval_loss"] for entry in self.by_step.values()]

    def row_losses(self, step: int) -> list[float]:
        """As the evaluation had them, in the dataset's order. With several processes they may come several times."""
        return list(self.by_step[step][ROW_LOSSES])


def risen(course: Course, rows: int, cfg: Training) -> str:
    """A warning where the held-out pairs' losses ended above what they were before the first step by more than their
    noise; else ''."""
    if not course.by_step:
        return ""
    change = paired(course.row_losses(0)[:rows], course.row_losses(max(course.by_step))[:rows])
    if not change.low > 0:
        return ""
    return (
        f"held-out loss {in_one_line(course.losses)}: it ended higher than before the first step, by "
        f"{change.per('pair')}. {lower_rate(cfg)}, or {cfg.block}.epochs."
    )


def lowest_losses(course: Course, step: int, rows: int, cfg: Training, out: Work) -> list[float]:
    """Return the validation rows' losses at the step that is published, compared with those before the first.

    Raises:
        UserError: where they rose by more than RISE, and by more than their noise. A smaller rise only warns: rows
            that the model itself wrote start where it is hardly to be bettered.
    """
    before, after = course.row_losses(0)[:rows], course.row_losses(step)[:rows]
    change, start = paired(before, after), fmean(before)
    if change.mean <= 0:
        return after
    message = (
        f"validation loss {in_one_line(course.losses)}: at its best, after step {step}, it is higher than before the "
        f"first step, by {change.per('row')}"
    )
    if change.mean > RISE * start and change.low > 0:
        raise UserError(f"{message}: training made the model worse, and nothing is published. {lower_rate(cfg)}.")
    out.warn(f"{message}. {lower_rate(cfg)}, unless these rows are the model's own.")
    return after
