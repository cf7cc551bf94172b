"""Callbacks of every training stage: when to evaluate, when to stop because it diverges, curves, a progress bar."""

import math
import statistics
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.config.errors import UserError
from stages.config.schema import Training
from stages.store.work import Progress, Work

EXPLOSION = 1000.0  # a gradient norm this many times the median so far is divergence


class Evaluations(TrainerCallback):
    """Evaluate a given number of times, evenly spaced, the last after the last step."""

    def __init__(self, trainer: Trainer, times: int):
        self.times = times if trainer.eval_dataset is not None else 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        due = {math.ceil(state.max_steps * k / self.times) for k in range(1, self.times + 1)}
        control.should_evaluate = state.global_step in due


class Watch(TrainerCallback):
    """Stop at the step where training diverges, before a checkpoint can be saved from it."""

    def __init__(self, cfg: Training):
        self.cfg, self.norms = cfg, list[float]()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, logs: Any, **_: Any
    ) -> None:
        if not math.isfinite(logs.get("eval_loss", 0.0)):
            raise UserError(
                f"training diverged by step {state.global_step}: the validation loss is {logs['eval_loss']}."
            )
        if "grad_norm" not in logs:
            return
        loss, norm = logs["loss"], logs["grad_norm"]
        exploded = len(self.norms) >= 8 and norm > EXPLOSION * statistics.median(self.norms)
        if not math.isfinite(loss) or not math.isfinite(norm) or exploded:
            raise UserError(
                f"training diverged at step {state.global_step}: loss {loss:.3g}, gradient norm {norm:.3g}. "
                f"Lower the learning rate (now {self.cfg.learning_rate:g}) or lengthen the warm-up."
            )
        self.norms.append(norm)


class Curves(TrainerCallback):
    """Hand TRL's metrics, under its names, to the node's log."""

    def __init__(self, out: Work):
        self.out = out

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, logs: Any, **_: Any
    ) -> None:
        if "train_runtime" not in logs:  # the summary after the last step is no point of a curve
            self.out.log({k: v for k, v in logs.items() if isinstance(v, int | float)}, state.global_step)


class Bar(TrainerCallback):
    """Progress with rate, time remaining and the last losses."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress = Progress(state.max_steps, "train", "step", done=state.global_step)
        self.losses: dict[str, str] = {}

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, logs: Any, **_: Any
    ) -> None:
        self.losses |= {name: f"{name} {logs[name]:.3f}" for name in ("loss", "eval_loss") if name in logs}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress.update(note=", ".join(self.losses.values()))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress.close()
