"""What is kept of a training: the weights or adapter of its best or last step, and what is published of them."""

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
from stages.config.schema import DPO, SFT
from stages.models.loading import save_model
from stages.store.work import Work
from stages.training import adapters


def save_trained(trainer: Trainer, folder: Path) -> None:
    """What was trained: all weights, or the adapter. Every process has to call this."""
    divided = trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if divided else None
    if trainer.is_world_process_zero():
        if state:  # gathered apart, tied weights are no longer seen to be one
            state = {k: v for k, v in state.items() if k not in trainer.model.all_tied_weights_keys}
        save_model(trainer.model, folder, state)


def publish(
    trained: Path, cfg: SFT | DPO, out: Work, frozen: Path, loaded: Callable[[Weights], PreTrainedModel]
) -> None:
    """Put what was trained into `model/`; an adapter into `adapter/`, and merged with what it lies on, which is in
    `frozen` and `loaded` from there, into `model/`.

    4-bit weights are merged as they were quantised; bf16 ones as the fp32 weights that they were rounded from.
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
    """Keep what was trained at the lowest validation loss in a folder of its own; `found` says where that was."""

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
        if not metrics["eval_loss"] < self.found.get("eval_loss", math.inf):
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
