"""Checkpoints that say whether they are complete: a resume from a torn one would train other weights on, silently."""

import logging
import re
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.store.sealed_json import broken, remove, seal
from stages.store.workspace import SCRATCH, Work

log = logging.getLogger(__name__)

NAME = re.compile(r"checkpoint-(\d+)")
TIMES = 20  # the time that saving the last checkpoint took, until the next is saved by time: 5% of a training at most


def checkpoint_folder(out: Work) -> Path:
    return out / SCRATCH / "checkpoints"


class Checkpoints(TrainerCallback):
    """Save a checkpoint by time too, `interval` seconds after the last one. Mark a checkpoint complete, with digests
    of its files, and only then drop the ones before it. That of the last step has no optimizer state, two thirds of a
    checkpoint: nothing is trained after it."""

    def __init__(self, interval: float):
        self.interval, self.took = interval, 0.0
        self.last_save = self.begin = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.last_save = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        args.save_only_model = state.global_step >= state.max_steps
        self.begin = time.monotonic()
        due = self.begin - self.last_save >= max(self.interval, TIMES * self.took)
        # Every process takes part in saving, so all do what the first one's clock says.
        by_time = bool(broadcast(torch.tensor(int(due), device=args.device)))
        control.should_save = control.should_save or by_time

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.begin = time.monotonic()  # a step is saved after it is evaluated

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        processes = PartialState()
        processes.wait_for_everyone()  # every process writes files of its own into it
        if processes.is_main_process:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            seal(folder)
            for other in saved(folder.parent):
                if other != folder:
                    remove(other)
        self.last_save = time.monotonic()
        self.took = self.last_save - self.begin


def saved(folder: Path) -> list[Path]:
    """Every checkpoint, whole or not, the last first. What is named otherwise is none of ours."""
    steps = {path: found[1] for path in folder.glob("*") if (found := NAME.fullmatch(path.name)) and path.is_dir()}
    return sorted(steps, key=lambda path: int(steps[path]), reverse=True)


def newest_complete(folder: Path) -> Path | None:
    """The last checkpoint whose files have the digests in its marker. Later ones, which are torn, are removed."""
    for checkpoint in saved(folder):
        if not (wrong := broken(checkpoint)):
            return checkpoint
        log.warning("warning: %s is not whole (%s): it is removed, and training resumes before it.", checkpoint, wrong)
        remove(checkpoint)
    return None
