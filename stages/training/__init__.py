"""What `sft` and `dpo` share: TRL's arguments, whole batches, the run itself, and what is published of it."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from accelerate import DistributedType
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from stages.config.choices import Adapter, Precision, Sharding, Weights
from stages.config.errors import UserError
from stages.config.schema import DPO, SFT
from stages.models.loading import device_of, save_model
from stages.store.work import Work
from stages.training import adapters
from stages.training.callbacks import Curves, Evaluations, Progress, Watch
from stages.training.checkpoints import Checkpoints, checkpoint_folder, newest_complete

Row = TypeVar("Row")
TRLConfig = TypeVar("TRLConfig", bound=TrainingArguments)

# What TRL's arguments say of weights, gradients and optimizer state that are divided among the processes.
DIVIDED: dict[Sharding, dict[str, Any]] = {
    Sharding.none: {},
    Sharding.fsdp: {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}},
    Sharding.zero3: {
        "deepspeed": {
            "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
            "bf16": {"enabled": "auto"},
            "gradient_clipping": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
        }
    },
}


def arguments(kind: type[TRLConfig], cfg: SFT | DPO, out: Work, **own: Any) -> TRLConfig:
    """TRL's arguments from a block. A batch is a whole optimizer step's.

    Raises:
        UserError: for what TRL refuses of `trainer`, where more than one GPU is visible to this one process, and where
            there are other processes than those asked for.
    """
    runtime = cfg.runtime
    settings = dict(
        output_dir=str(checkpoint_folder(out)),
        learning_rate=cfg.learning_rate,
        num_train_epochs=cfg.epochs,
        per_device_train_batch_size=cfg.batch_size // runtime.world_size,  # divided in `micro_batches`
        gradient_accumulation_steps=1,
        per_device_eval_batch_size=1,  # a mean over examples, then, and not over means of micro-batches
        max_length=cfg.max_length,
        seed=cfg.seed,
        bf16=cfg.precision is Precision.bf16,
        use_cpu=device_of(runtime.device).type == "cpu",
        activation_checkpointing=False,  # until `budget` says otherwise
        dataloader_num_workers=runtime.loader_workers,
        save_strategy="steps",
        save_steps=runtime.save_steps,
        eval_strategy="no",  # `Evaluations` says when
        logging_steps=1,  # so that `Watch` sees every step
        logging_nan_inf_filter=False,
        prediction_loss_only=True,
        report_to="none",
        log_level_replica="error",
        ddp_find_unused_parameters=False,  # searching is slow; a mixture of experts may need it (trainer:)
        # A mean of micro-batch means, so off unless asked for; nothing but a mixture of experts has it.
        router_aux_loss_coef=0.0,
        **DIVIDED[runtime.sharding],
        **own,
    )
    try:
        made = kind(**settings | cfg.trainer)
    except (TypeError, ValueError) as error:
        raise UserError(f"TRL refuses {kind.__name__}: {' '.join(str(error).split())[:300]}") from error
    if made.n_gpu > 1:
        raise UserError(
            "more than one GPU is visible. One process trains on one: set CUDA_VISIBLE_DEVICES=0, or launch=ddp."
        )
    if made.world_size != runtime.world_size:
        raise UserError(f"{made.world_size} processes found each other; {runtime.world_size} were to be started.")
    return made


def cut_to_batches(rows: Sequence[Row], identify: Callable[[Row], str], batch_size: int, what: str) -> list[Row]:
    """All but `len(rows) % batch_size` rows, those with the highest hash of their id, in the same order.

    Every optimizer step then sees exactly `batch_size` rows.
    """
    excess = len(rows) % batch_size
    if excess == len(rows):
        raise UserError(f"{what}: {len(rows)} rows are fewer than one batch of {batch_size}. Lower batch_size.")
    order = sorted(range(len(rows)), key=lambda i: hashlib.sha256(identify(rows[i]).encode()).digest())
    cut = set(order[len(rows) - excess :])
    return [row for i, row in enumerate(rows) if i not in cut]


def each_alike(rows: list[Row], processes: int) -> list[Row]:
    """Rows for an evaluation in several processes: where they cannot be dealt out evenly, each as often as there are
    processes, so that none counts more than another in a mean over batches of one."""
    return rows * (processes if len(rows) % processes else 1)


def train(trainer: Trainer, cfg: SFT | DPO, out: Work, *more: TrainerCallback) -> None:
    """Train to the end, from the newest complete checkpoint if there is one, under our callbacks and not TRL's.

    Raises:
        UserError: where training diverges, and where a model that was to be divided among processes would not be.
    """
    if cfg.runtime.sharding is Sharding.fsdp and trainer.accelerator.distributed_type is not DistributedType.FSDP:
        raise UserError("launch=fsdp divides a model among GPUs; these processes compute on the CPU. Use launch=ddp.")
    if cfg.adapter is not Adapter.none:
        adapters.keep_fp32(trainer.model)
    for theirs in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(theirs)
    ours: list[TrainerCallback] = [Evaluations(trainer, cfg.evaluations), Watch(cfg), Curves(out)]
    ours += [Checkpoints()] + ([Progress()] if out.main else [])
    for callback in (*more, *ours):
        trainer.add_callback(callback)
    with trainer.accelerator.main_process_first():  # which removes torn ones
        resumed = newest_complete(checkpoint_folder(out))
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)


def save_trained(trainer: Trainer, folder: Path) -> None:
    """What was trained: all weights, or the adapter. Every process has to call this."""
    divided = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
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
        save_model(adapters.merge(loaded(held), place), out / "model")


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
