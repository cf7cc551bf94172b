"""How the validation loss went, row by row. It stands in the trainer's log, and so in every checkpoint: a resumed
training knows how the one before it began."""

from typing import Any

from transformers import Trainer

from stages.config.blocks.training import Training
from stages.evaluation.intervals import paired
from stages.training.callbacks import in_one_line, lower_rate
from stages.training.trainer import ROW_LOSSES


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
