"""Running a trainer: from the newest complete checkpoint to its last step, under our callbacks."""

from accelerate import DistributedType
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from stages.config.blocks.training import Training
from stages.config.choices import Adapter, Sharding
from stages.config.errors import UserError
from stages.store.workspace import Work
from stages.training import adapters
from stages.training.callbacks import Bar, Curves, Evaluations, Watch
from stages.training.checkpoints import Checkpoints, checkpoint_folder, newest_complete


def train(trainer: Trainer, cfg: Training, out: Work, *more: TrainerCallback) -> None:
    """Train to the end, from the newest complete checkpoint if there is one, under our callbacks and not TRL's.

    Raises:
        UserError: where training diverges, and where a model that is to be sharded would not be.
    """
    if cfg.runtime.sharding is Sharding.fsdp and trainer.accelerator.distributed_type is not DistributedType.FSDP:
        raise UserError("launch=fsdp divides a model among GPUs; these processes compute on the CPU. Use launch=ddp.")
    if cfg.adapter is not Adapter.none:
        adapters.keep_fp32(trainer.model)
    for theirs in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(theirs)
    ours: list[TrainerCallback] = [Watch(cfg), Curves(out), Checkpoints(60 * cfg.runtime.save_minutes)] + (
        [Bar()] if out.main else []
    )
    ours.append(Evaluations(trainer, cfg.evaluations))  # it evaluates as training begins: the others are ready by then
    for callback in (*more, *ours):
        trainer.add_callback(callback)
    with trainer.accelerator.main_process_first():  # the main process removes torn checkpoints, once
        resumed = newest_complete(checkpoint_folder(out))
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
