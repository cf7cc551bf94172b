"""Save a training: checkpoints for a resume, and the best or last step, which becomes the node's model.

A marker says that a checkpoint is complete: resuming from an incomplete one would silently train other weights."""

import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import broadcast
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from stages.config.blocks.objective import Training
from stages.config.choices import Adapter, Sharding, Weights
from stages.config.errors import UserError
from stages.hardware import allocator
from stages.models import rounding
from stages.models.loading import save_model
from stages.store import sealed_json
from stages.store.allowance import Allowance
from stages.store.workspace import SCRATCH, StageDir
from stages.training import adapters

log = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# wait this multiple of the last checkpoint's saving time: at most 5% of a training
SAVE_TIME_FACTOR = 20
BEST_STEP = "best.json"  # step and loss of the weights in the same folder


def checkpoint_folder(out: StageDir) -> Path:
    return out / SCRATCH / "checkpoints"


class Checkpoints(TrainerCallback):
    """Save a checkpoint also `interval` seconds after the last one. Mark it complete, with digests of its files, and
    only then remove earlier ones. The last step's checkpoint omits the optimizer state, two thirds of its size.

    If the time of the command is up, save a checkpoint, and stop the training of this block by LimitReached."""

    def __init__(self, interval: float, allowance: Allowance, block: str):
        self.interval = interval
        self.allowance = allowance
        self.block = block
        self.stops = False
        self.save_seconds = 0.0
        self.last_save = time.monotonic()
        self.save_start = self.last_save

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.last_save = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # Of sharded weights, Trainer saves only the copy beside the optimizer state.
        is_last = state.global_step >= state.max_steps
        args.save_only_model = is_last and not (args.fsdp or args.deepspeed)
        self.save_start = time.monotonic()
        wait = max(self.interval, SAVE_TIME_FACTOR * self.save_seconds)
        due = self.save_start - self.last_save >= wait
        self.stops = self.allowance.is_late and not is_last
        # every process takes part in saving, so the clock of the first one decides for all
        if args.world_size > 1:
            of_first = broadcast(torch.tensor([due, self.stops], device=args.device).int())
            due, self.stops = map(bool, of_first)
        control.should_save = control.should_save or due or self.stops

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # evaluation comes before saving, and is not part of its time
        self.save_start = time.monotonic()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        processes = PartialState()
        processes.wait_for_everyone()  # every process writes files into the checkpoint
        if processes.is_main_process:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            sealed_json.seal(folder)
            for other in list_checkpoints(folder.parent):
                if other != folder:
                    sealed_json.remove(other)
        self.last_save = time.monotonic()
        self.save_seconds = self.last_save - self.save_start
        if self.stops:
            processes.wait_for_everyone()  # the first process that ends ends the others
            step = f"step {state.global_step} of {state.max_steps}"
            raise self.allowance.time_is_up(f"in {self.block} at {step}, whose checkpoint is kept")


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders, complete or not, the last first. Folders with other names are ignored."""
    by_step = dict[int, Path]()
    for path in folder.glob("*/"):
        match = CHECKPOINT.fullmatch(path.name)
        if match:
            by_step[int(match[1])] = path
    return [by_step[step] for step in sorted(by_step, reverse=True)]


def newest_complete(folder: Path) -> Path | None:
    """Return the last checkpoint whose files have the digests in its marker. Remove later, damaged ones."""
    for checkpoint in list_checkpoints(folder):
        damage = sealed_json.seal_problem(checkpoint)
        if not damage:
            return checkpoint
        log.warning(
            "warning: %s is damaged (%s). It is removed, and training resumes before it.",
            checkpoint,
            damage,
        )
        sealed_json.remove(checkpoint)
    return None


def checkpoint_to_resume(out: StageDir, sharding: Sharding) -> Path | None:
    """Return the last complete checkpoint. Raise UserError if another `launch.sharding` saved it: it is unreadable."""
    checkpoint = newest_complete(checkpoint_folder(out))
    if checkpoint is None:
        return None
    saved = Sharding.none
    if any(checkpoint.glob("pytorch_model_fsdp*")):
        saved = Sharding.fsdp
    if any(checkpoint.glob("global_step*")):
        saved = Sharding.zero3
    if saved is not sharding:
        way_out = f"Type the command with launch.sharding={saved}, or delete {checkpoint.parent} to start again"
        problem = f"{checkpoint} is of launch.sharding={saved}, and launch.sharding={sharding} cannot read it"
        raise UserError(f"{problem}. {way_out}.")
    return checkpoint


def save_trained(trainer: Trainer, folder: Path, best: dict[str, float] | None = None) -> None:
    """Save weights or adapter, completely or not at all. Every process must call this: each has a part of them."""
    draft = folder.with_suffix(".draft")
    if trainer.is_world_process_zero():
        sealed_json.remove(draft)
    is_sharded = trainer.accelerator.distributed_type in (
        DistributedType.FSDP,
        DistributedType.DEEPSPEED,
    )
    state = None
    if is_sharded:  # gathering copies tied weights, which would be saved twice
        tied = trainer.model.all_tied_weights_keys
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        state = {name: weight for name, weight in (state or {}).items() if name not in tied}
    if trainer.is_world_process_zero():
        save_model(trainer.model, draft, state)
        sealed_json.write_note(draft / BEST_STEP, best or {})
        sealed_json.seal(draft)
        sealed_json.replace_folder(draft, folder)


def publish(
    trained: Path,
    cfg: Training,
    out: StageDir,
    start: Path,
    load: Callable[[Weights], PreTrainedModel],
) -> float | None:
    """Publish the trained weights as `model/`; or the adapter as `adapter/`, and merged as `model/`.

    `start` is the folder of the weights that were trained, or are under the adapter, and `load` loads them. A QLoRA
    adapter is merged into its 4-bit weights, a LoRA adapter into fp32 weights. If `start` is in bfloat16, `model/` is
    rounded too: return the share of the update that survives, else None.
    Raise UserError if the files are not those that were saved, or the merged model computes something else than the
    adapter over those weights."""
    damage = sealed_json.seal_problem(trained)
    if damage:
        raise UserError(
            f"{trained}: {damage}. Nothing is published; the same command trains the lost part again."
        )
    place = out / ("model" if cfg.adapter is Adapter.none else "adapter")
    for stale in (out / "model", out / "adapter"):
        shutil.rmtree(stale, ignore_errors=True)
    # our model card replaces peft's
    ignored = shutil.ignore_patterns(BEST_STEP, sealed_json.SEAL, "README.md")
    shutil.copytree(trained, place, ignore=ignored, copy_function=link_or_copy)
    if cfg.adapter is not Adapter.none:
        adapters.normalize_adapter_config(place, start)
        allocator.return_freed_memory()
        weights = Weights.nf4 if cfg.adapter is Adapter.qlora else Weights.fp32
        merged = adapters.merge_trained(load(weights), weights, place, cfg)
        save_model(merged, out / "model")
    if rounding.is_rounded(start):
        return rounding.round_update(out / "model", start)
    return None


def link_or_copy(source: str, target: str) -> None:
    """Hard-link a file, or copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class BestModel(TrainerCallback):
    """Save the trained weights whenever the validation loss is the lowest so far; `figures` has the loss, the objective's
    other measures and the step. Step 0 is never the best: it is only for comparison."""

    measures = ("eval_loss", "eval_text_perplexity")

    def __init__(self, trainer: Trainer, folder: Path):
        self.trainer = trainer
        self.folder = folder
        with trainer.accelerator.main_process_first():
            self.figures = self.read_earlier_best()

    def read_earlier_best(self) -> dict[str, float]:
        """Return the best step of an interrupted attempt. If it is damaged, remove it and all checkpoints after it:
        training resumed from them would take a later step as the best."""
        draft = self.folder.with_suffix(".draft")
        checkpoints = self.folder.with_name("checkpoints")
        if not self.folder.exists() and not sealed_json.seal_problem(draft):
            sealed_json.replace_folder(draft, self.folder)  # the attempt ended just before this
        damage = sealed_json.seal_problem(self.folder)
        if not damage:
            return sealed_json.load_json(self.folder / BEST_STEP, sealed_json.require_keys())
        later = list[Path]()
        for checkpoint in list_checkpoints(checkpoints):
            if (checkpoint / BEST_STEP).exists():
                later.append(checkpoint)
        if later or self.folder.exists():
            log.warning(
                "warning: %s: %s. The folder is removed and trained again.", self.folder, damage
            )
        for path in (self.folder, *later):
            sealed_json.remove(path)
        return {}

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.figures and state.is_world_process_zero:  # a resume needs it
            sealed_json.write_note(
                Path(args.output_dir) / f"checkpoint-{state.global_step}" / BEST_STEP, self.figures
            )

    def on_evaluate(
        self, args: Any, state: TrainerState, control: Any, *, metrics: dict[str, Any], **_: Any
    ) -> None:
        if state.global_step > 0 and metrics["eval_loss"] < self.figures.get("eval_loss", math.inf):
            measured = {name: metrics[name] for name in self.measures if name in metrics}
            self.figures = {**measured, "step": state.global_step}
            save_trained(self.trainer, self.folder, self.figures)
