"""Saving the weights or the adapter of a training's best or last step, and publishing them as the node's model."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import DistributedType
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.config.choices import Adapter, Weights
from stages.config.schema import Training
from stages.models.loading import save_model
from stages.store.work import Work
from stages.training import adapters


def save_trained(trainer: Trainer, folder: Path) -> None:
    """Save what was trained: all weights, or the adapter. Every process has to call this: sharded weights are gathered
    from all of them."""
    divided = trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if divided else None
    if trainer.is_world_process_zero():
        if state:  # gathering copies tied weights, which would be saved twice
            state = {k: v for k, v in state.items() if k not in trainer.model.all_tied_weights_keys}
        save_model(trainer.model, folder, state)


def publish(
    trained: Path, cfg: Training, out: Work, frozen: Path, loaded: Callable[[Weights], PreTrainedModel]
) -> None:
    """Publish what was trained: weights as `model/`; an adapter as `adapter/`, and merged as `model/`.

    `frozen` is the folder of the weights below the adapter, and `loaded` loads them. A QLoRA adapter is merged into
    the 4-bit weights it was trained over. A LoRA adapter is merged into fp32 weights, also where training held them in
    bf16.
    """
    place = out / ("model" if cfg.adapter is Adapter.none else "adapter")
    for stale in (out / "model", out / "adapter"):
        shutil.rmtree(stale, ignore_errors=True)
    # Hard links: the weights are on the disk once. peft's card says nothing that ours does not.
    ignored = shutil.ignore_patterns("best.json", "README.md")
    shutil.copytree(trained, place, ignore=ignored, copy_function=os.link)
    if cfg.adapter is not Adapter.none:
        adapters.name_lower(place, frozen)
        held = Weights.nf4 if cfg.adapter is Adapter.qlora else Weights.fp32
        save_model(adapters.merge(loaded(held), held, place), out / "model")


class Best(TrainerCallback):
    """Save what was trained whenever the validation loss is the lowest so far; `found` has that loss and its step.
    What has not been trained yet, at step 0, is never the best: it is there to compare with."""

    def __init__(self, trainer: Trainer, folder: Path):
        self.trainer, self.folder = trainer, folder
        score = folder / "best.json"
        self.found: dict[str, float] = json.loads(score.read_text()) if score.exists() else {}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        if state.global_step == 0 or not metrics["eval_loss"] < self.found.get("eval_loss", math.inf):
            return
        self.found = {"eval_loss": metrics["eval_loss"], "step": state.global_step}
        draft = self.folder.with_suffix(".draft")
        if state.is_world_process_zero:
            shutil.rmtree(draft, ignore_errors=True)
        save_trained(self.trainer, draft)
        if state.is_world_process_zero:
            (draft / "best.json").write_text(json.dumps(self.found))
            shutil.rmtree(self.folder, ignore_errors=True)
            draft.rename(self.folder)
