"""How the validation loss went, row by row. It stands in the trainer's log, and so in every checkpoint: a resumed
training knows how the one before it began."""

from typing import Any

from transformers import Trainer

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
