"""Run the steps of every objective's training in order: rows, arguments, memory, trainer, training, publishing.

A stage makes rows and model, and adds the objective's own steps between these."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
)

from stages.config.blocks.objective import Training
from stages.config.blocks.runtimes import SampledRuntime
from stages.config.blocks.training import DPO, Reward
from stages.config.choices import Adapter, Forward, Sharding, Split, Weights
from stages.models import model_card
from stages.models.contract import Contract
from stages.models.packing import pack_pairs
from stages.store.dropped import Dropped
from stages.store.records import Message
from stages.store.sealed_json import write_note
from stages.store.workspace import SCRATCH, StageDir
from stages.training import adapters, budget, sharding
from stages.training.arguments import training_arguments
from stages.training.batches import EpochSchedule
from stages.training.callbacks import (
    CurveLog,
    DivergenceCheck,
    EvaluationTimes,
    FreedMemory,
    TrainingProgress,
)
from stages.training.micro_batches import MicroBatches
from stages.training.samples import FirstPrompts, SampleWriter
from stages.training.saving import (
    BestModel,
    Checkpoints,
    checkpoint_to_resume,
    publish,
    save_trained,
)
from stages.training.token_rows import ColumnRows

Rows = TypeVar("Rows", bound=ColumnRows[Any])
Block = TypeVar("Block", bound=Training)
TrainerOf = TypeVar("TrainerOf", bound=MicroBatches)


class SplitRows(Generic[Rows]):
    """The training and validation rows, the first held-out prompts, and the number of rows left out by reason. Rows are
    added in one pass, and only a few of them are lists of tokens in memory."""

    def __init__(
        self, rows_class: type[Rows], cfg: Training, out: StageDir, context: int | None = None
    ):
        """`context`: the number of tokens that the model reads."""
        self.train = rows_class()
        self.validation = rows_class()
        samples = getattr(cfg.runtime, "samples", 0)
        self.prompts = FirstPrompts(samples)
        self.left_out = Dropped(
            out, cfg.objective.row_noun, cfg.max_dropped, f"{cfg.block}.max_dropped"
        )
        self.longest, self.too_long, self.key = cfg.length_limit(context)
        self.left_out.most = context or self.left_out.most
        self.dropped = dict[str, int]()

    def fits(self, name: str, tokens: int) -> bool:
        """Return whether a row of so many tokens is short enough, or count it as left out."""
        is_short = tokens <= self.longest
        if not is_short:
            self.left_out.add(name, self.too_long, tokens, self.key)
        return is_short

    def add(self, split: str, name: str, row: Any, prompt: list[Message]) -> None:
        if split == Split.validation:
            self.validation.add(name, row)
            if prompt:  # a document has none
                self.prompts.add(prompt)
        else:
            self.train.add(name, row)

    def settle(self) -> None:
        """Count the rows left out. Raise UserError if they are too many, or no training row is left."""
        self.dropped = self.left_out.settle(len(self.train) + len(self.validation), len(self.train))


class Fit(Generic[Block, TrainerOf]):
    """One training by a trainer of the class `kind`, from the weights in the folder `start`. The token budget is
    decided here, from the free memory: load the model afterwards."""

    trainer: TrainerOf
    trained: Path  # the folder with the trained weights or adapter
    surviving: float | None = (
        None  # of the update, the share in the published weights if they are rounded
    )

    def __init__(
        self,
        kind: type[TrainerOf],
        cfg: Block,
        rows: SplitRows[Any],
        contract: Contract,
        start: Path,
        out: StageDir,
    ):
        self.trainer_class = kind
        self.rows = rows
        self.contract = contract
        self.start = start
        self.out = out
        self.schedule = EpochSchedule(rows.train.ids, cfg.batch_size, cfg.seed, cfg.block)
        self.args = training_arguments(cfg, out, **kind.arguments)
        self.cfg = budget.decide_open_settings(cfg, self.args, start, out)

    def build_trainer(self, model: Any) -> TrainerOf:
        """Return the trainer of this model."""
        validation = self.rows.validation
        held_out = None
        if len(validation):
            held_out = validation.dataset
        sharding.replace_meta_parameters(model)
        self.trainer = self.trainer_class(
            model,
            cfg=self.cfg,
            out=self.out,
            schedule=self.schedule,
            args=self.args,
            train_dataset=self.rows.train.dataset,
            eval_dataset=held_out,
            processing_class=self.contract.tokenizer,
        )
        return self.trainer

    def train(self, *callbacks: TrainerCallback, best: BestModel | None = None) -> None:
        """Train to the last step, from the newest complete checkpoint if any. Save the weights of the last step, unless
        `best` has others. Raise UserError if training diverges, and LimitReached if the time of the command is up."""
        trainer = self.trainer
        own_callbacks = [*callbacks, *self.shared_callbacks()]
        if best:
            own_callbacks.insert(0, best)
        if self.cfg.adapter is not Adapter.none:
            adapters.cast_trained_to_fp32(trainer.model)
        for default in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(default)
        for callback in own_callbacks:
            trainer.add_callback(callback)
        # the main process removes incomplete checkpoints
        with trainer.accelerator.main_process_first():
            resumed = checkpoint_to_resume(self.out, self.cfg.runtime.sharding)
        checkpoint = None
        if resumed:
            checkpoint = str(resumed)
        with contextlib.ExitStack() as around:
            if self.cfg.runtime.sharding is Sharding.fsdp:
                around.enter_context(sharding.like_autocast(trainer))
            trainer.train(resume_from_checkpoint=checkpoint)
        if best and best.figures:
            self.trained = best.folder
        else:
            self.trained = self.out / SCRATCH / "trained"
            save_trained(trainer, self.trained)

    def train_to_best(self, *callbacks: TrainerCallback) -> dict[str, float]:
        """Train, save the weights with the lowest validation loss, and return this loss and its step. Without
        validation rows, save the weights of the last step, and return {}."""
        best = BestModel(self.trainer, self.out / SCRATCH / "best")
        self.train(*callbacks, best=best)
        return best.figures

    def shared_callbacks(self) -> Iterator[TrainerCallback]:
        """Yield the callbacks of every training, in their order."""
        if isinstance(self.cfg.runtime, SampledRuntime):
            yield SampleWriter(self.trainer, self.cfg, self.rows.prompts, self.contract, self.out)
        yield DivergenceCheck(self.cfg)
        yield CurveLog(self.trainer, self.out)
        yield FreedMemory()
        yield Checkpoints(60 * self.cfg.runtime.save_minutes, self.out.allowance, self.cfg.block)
        if self.out.is_main:
            yield TrainingProgress()
        # the last, because it evaluates at once
        yield EvaluationTimes(self.trainer, self.cfg, self.out)

    def publish(
        self, load: Callable[[Weights], PreTrainedModel], held_out: list[dict[str, Any]]
    ) -> None:
        """Publish model, contract, any adapter, and each held-out row's figures. `load` loads an adapter's base."""
        self.surviving = publish(self.trained, self.cfg, self.out, self.start, load)
        self.contract.save(self.out / "model")
        write_note(self.out / "held_out.json", held_out)

    def describe(self, inputs: dict[str, Path], figures: dict[str, Any], *warnings: str) -> None:
        """Write the model card with these figures, and show the warnings; add one for rows that no step contained, and
        one if rounding lost most of the update."""
        unseen = self.schedule.unseen_message(self.steps, self.rows.train.noun)
        for warning in (*warnings, unseen, self.lost_update_message()):
            if warning:
                self.out.warn(warning)
        model_card.write_card(self.out / "model", self.cfg, inputs, figures | self.rounding)

    def metrics(self, tokens: Sequence[int]) -> dict[str, Any]:
        """Return device, steps, and the numbers of trained rows and tokens (`tokens`: each row's) and other rows, with
        the first clause of the summary."""
        unit = self.cfg.objective.row_noun
        return {
            "device": str(self.args.device),
            "processes": self.args.world_size,
            unit: self.schedule.row_count,
            f"{unit}_cut": self.schedule.left_out,
            f"{unit}_unseen": self.schedule.row_count - len(self.times_seen),
            f"{unit}_dropped": self.rows.dropped,
            "steps": self.steps,
            "tokens": sum(times * tokens[i] for i, times in self.times_seen.items()),
            "summary": f"{len(self.rows.train)} {unit} × {self.cfg.epochs:g} epochs, {self.steps} steps",
            **self.rounding,
        }

    @property
    def rounding(self) -> dict[str, float]:
        """The share of the update that survives rounding, as a metric; {} if the published weights are not rounded."""
        if self.surviving is None:
            return {}
        return {"surviving_update": self.surviving}

    def lost_update_message(self) -> str:
        """Return the warning that rounding undid the update of most weights; '' if it did not."""
        if self.surviving is None or self.surviving >= 0.5:
            return ""
        problem = f"of the weights that training changed, {self.surviving:.1%} still differ when they are rounded"
        return f"model.dtype=bfloat16: {problem}. model.dtype=null publishes the whole update."

    @property
    def steps(self) -> int:
        return self.trainer.state.global_step

    @cached_property
    def times_seen(self) -> Counter[int]:
        """The number of steps that contained each row."""
        return self.schedule.times_seen(self.steps)


def pack_if_possible(model: PreTrainedModel, cfg: DPO | Reward, out: StageDir) -> PreTrainedModel:
    """Make the model read the prompt of a pair once if `forward` asks for it, or warn that the model cannot."""
    if cfg.forward is Forward.shared_prefix and not pack_pairs(model):
        out.warn(
            "this model's attention cannot be packed, so pairs are padded and every prompt is read twice."
        )
    return model
