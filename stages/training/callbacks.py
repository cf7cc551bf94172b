"""Callbacks of every training stage: times of evaluation, divergence, memory, curves and a progress bar."""

import math
from collections.abc import Sequence
from typing import Any, NoReturn

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.config.blocks.objective import Training
from stages.config.errors import UserError
from stages.hardware import allocator
from stages.store.numbers import signed
from stages.store.workspace import Progress, StageDir, last_values

# Training has diverged if all its last losses exceed the losses at the start by this factor and by this difference.
RISE = 1.5
NATS = 1.0
# Steps after which freed memory is returned: these, for trainings of few steps, and then every so many. SFT of
# SmolLM2-135M on a CPU peaks at 3.8 GiB instead of 4.7; a return after every 4 steps took 4% more CPU time.
FIRST_RETURNS = (1, 2, 4, 8)
RETURN_STEPS = 16
# steps at the start and at the end; in a short training, half of all steps are recent
BEGINNING = 2
RECENT = 8


class EvaluationTimes(TrainerCallback):
    """Evaluate before the first step, then as often as the block says at even distances, the last at the end, but not
    more than once a step. 0 means never."""

    def __init__(self, trainer: Trainer, cfg: Training, out: StageDir):
        self.trainer = trainer
        self.cfg = cfg
        self.out = out
        self.times = 0
        if trainer.eval_dataset is not None:
            self.times = cfg.evaluations

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.times > state.max_steps:
            key = f"{self.cfg.block}.evaluations"
            problem = f"{key}={self.times}: the training has {state.max_steps} steps"
            self.out.inform(f"{problem}, so each is evaluated. Set {key}={state.max_steps}.")
        if self.times and state.global_step == 0:
            self.trainer.evaluate()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        due = {math.ceil(state.max_steps * k / self.times) for k in range(1, self.times + 1)}
        control.should_evaluate = state.global_step in due


class DivergenceCheck(TrainerCallback):
    """Stop training when it diverges, before a checkpoint is saved: at a loss or gradient that is not finite, and at a
    loss far above its start.

    A single batch may have any loss. So the last check needs several consecutive losses, each above the first two and
    above the validation loss before the first step."""

    def __init__(self, cfg: Training):
        self.cfg = cfg
        self.losses = list[float]()
        self.start_loss = -math.inf

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for logs in state.log_history:  # a resumed training has logs already
            self.record(logs)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, *, logs: Any, **_: Any
    ) -> None:
        if not math.isfinite(logs.get("eval_loss", 0.0)):
            self.stop(f"by step {state.global_step}: the validation loss is {logs['eval_loss']}")
        self.record(logs)
        if "grad_norm" not in logs:
            return
        loss = logs["loss"]
        norm = logs["grad_norm"]
        if not math.isfinite(loss) or not math.isfinite(norm):
            figures = f"loss {loss:.3g}, gradient norm {norm:.3g}"
            self.stop(f"at step {state.global_step}: {figures}", ", or lengthen the warm-up")
        if self.has_climbed(state.max_steps):
            self.stop(f"by step {state.global_step}: the loss rose, {format_losses(self.losses)}")

    def stop(self, fault: str, more_advice: str = "") -> NoReturn:
        raise UserError(f"training diverged {fault}. {lower_rate_advice(self.cfg)}{more_advice}.")

    def record(self, logs: dict[str, Any]) -> None:
        if "grad_norm" in logs:
            self.losses.append(logs["loss"])
        elif not self.losses:
            self.start_loss = logs.get("eval_loss", self.start_loss)

    def has_climbed(self, steps: int) -> bool:
        recent = max(2, min(RECENT, steps // 2))
        if len(self.losses) < BEGINNING + recent:
            return False
        began = max(self.start_loss, *self.losses[:BEGINNING])
        return min(self.losses[-recent:]) > max(RISE * began, began + NATS)


def format_losses(losses: Sequence[float], max_count: int = 8) -> str:
    """Return `4.57 → 5.78 → 12.4`: the first loss, the last, and losses at even distances between them."""
    count = min(max_count, len(losses))
    steps = [round(i * (len(losses) - 1) / max(1, count - 1)) for i in range(count)]
    return " → ".join(signed(losses[place], "{:z.3g}") for place in steps)


def lower_rate_advice(cfg: Training) -> str:
    return f"Lower {cfg.rate_key} (now {cfg.learning_rate:g})"


class FreedMemory(TrainerCallback):
    """Return freed memory to the system at times. Each batch has other lengths, so that its tensors do not fit into the
    blocks of earlier ones, which would then stay."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step in FIRST_RETURNS or state.global_step % RETURN_STEPS == 0:
            allocator.return_freed_memory()


class CurveLog(TrainerCallback):
    """Write TRL's metrics, under TRL's names, to the node's log. A resumed training continues the log of its checkpoint:
    no step appears twice, and TRL, which would count tokens from 0, counts on."""

    def __init__(self, trainer: Any, out: StageDir):
        self.trainer = trainer
        self.out = out

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step == 0:
            self.out.rewind(-1)  # the evaluation before the first step is repeated too
            return
        self.out.inform(f"training resumes after step {state.global_step} of {state.max_steps}")
        self.out.rewind(state.global_step)
        counted = last_values(state.log_history, "num_tokens")
        if counted:
            self.trainer._total_train_tokens = counted["num_tokens"]

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, *, logs: Any, **_: Any
    ) -> None:
        if "train_runtime" not in logs:  # these logs are the summary after the last step
            self.out.log(
                {k: v for k, v in logs.items() if isinstance(v, int | float)}, state.global_step
            )


class TrainingProgress(TrainerCallback):
    """Show progress with steps per second, remaining time and the last losses."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.progress = Progress(state.max_steps, "train", "step", done=state.global_step)
        self.losses: dict[str, str] = {}

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, *, logs: Any, **_: Any
    ) -> None:
        self.losses |= {
            name: f"{name} {logs[name]:.3f}" for name in ("loss", "eval_loss") if name in logs
        }

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.progress.update(note=", ".join(self.losses.values()))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.progress.close()
