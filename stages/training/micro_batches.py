"""An optimizer step in micro-batches that fit into memory, with the result that a single batch of all rows would have.

A trainer is handed the rows of a whole step and divides them here, by a budget of tokens per micro-batch; where memory
runs out, by a lower one. The division moves no result: gradients add up under the step's normaliser, and a metric is
the mean over the step. An evaluation's forwards are divided likewise; its losses and metrics are taken row by row.
"""

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, TypeVar

import torch
from accelerate.utils import release_memory
from accelerate.utils.memory import should_reduce_batch_size
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.utils import ModelOutput

from stages.config.blocks.training import Training
from stages.config.choices import Checkpointing
from stages.models import lm_head
from stages.store.workspace import StageDir
from stages.training.budget import divide_rows, enable_checkpointing, out_of_memory_error, write_decision
from stages.training.token_rows import Row
from stages.training.trainer import PlumblineTrainer

Batch = dict[str, torch.Tensor]
Output = TypeVar("Output", bound=ModelOutput)


@dataclass
class StepRows:
    """The rows of a step in this process, as the dataset holds them. Neither sequence nor mapping: Trainer and
    accelerate would look into those for tensors to move or to count."""

    rows: list[Row]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


class OutOfMemory(Exception):
    def __init__(self, rows: list[Row]):
        self.rows = rows


def select_row(output: Output, index: tuple[Any, ...]) -> Output:
    """The output of one row among others: every figure of tokens or sequences, (sequences, …), at this index."""
    return type(output)(**{name: figures[index] for name, figures in output.items() if figures.dim()})


@contextlib.contextmanager
def average_over_step(trainer: Trainer, batches: list[Batch], weight: Callable[[str, Batch], int]) -> Iterator[None]:
    """Wrap the micro-batches `batches` of a step, and replace the means that TRL appended for them by those over the
    step in all processes. `weight(name, batch)` is how many items of a batch the metric `name` is a mean over.

    TRL gathers each micro-batch's mean from all processes and logs the plain mean of those means, whatever their
    sizes. Here no process gathers anything before its micro-batches are done. Then every mean is weighted by the
    number of pairs or tokens that it is over, and one reduction over the processes gives the mean of the step."""
    accelerator, metrics = trainer.accelerator, trainer._metrics["train"]
    tokens_before = trainer._total_train_tokens
    metrics.clear()
    vars(accelerator).update(gather=unchanged, gather_for_metrics=unchanged)
    try:
        yield
    except BaseException:
        trainer._total_train_tokens = tokens_before
        raise
    finally:
        del accelerator.gather, accelerator.gather_for_metrics
    names = [name for name in metrics if name != "num_tokens"]
    weights = [[weight(name, batch) for batch in batches] for name in names]
    sums = [
        sum(v * w for v, w in zip(metrics[name], ws, strict=True)) for name, ws in zip(names, weights, strict=True)
    ]
    sums_here = [*zip(sums, map(sum, weights), strict=True), (trainer._total_train_tokens - tokens_before, 1)]
    table = torch.tensor(sums_here, dtype=torch.float64, device=accelerator.device)
    *means, (tokens, _) = accelerator.reduce(table, "sum").tolist()
    metrics |= {name: [value / max(1, count)] for name, (value, count) in zip(names, means, strict=True)}
    trainer._total_train_tokens = tokens_before + int(tokens)
    metrics["num_tokens"] = [trainer._total_train_tokens]


def unchanged(tensor: Any) -> Any:
    """Stands in for accelerate's `gather` while a process works on its own."""
    return tensor


class MicroBatches(PlumblineTrainer, ABC):
    """Mixed in before a trainer of TRL's, has its steps done in micro-batches. `arguments`: TRL's that it needs."""

    arguments: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: Any, cfg: Training, out: StageDir, **kwargs: Any):
        self.cfg, self.out = cfg, out
        self.token_budget, self.checkpointing = cfg.runtime.token_budget, cfg.runtime.gradient_checkpointing
        self.data_collator: Any  # set by TRL
        self.aux_loss_enabled = False  # likewise, where it knows such a loss
        self.rows_to_score, self.outputs = list[Row](), deque[ModelOutput]()  # of an evaluation
        lm_head.install_cpu_head()
        super().__init__(*args, **kwargs)
        if self.checkpointing is Checkpointing.selective:  # none and full are TRL's own, told by the arguments
            enable_checkpointing(self.model, self.checkpointing)

    @property
    @abstractmethod
    def is_padded(self) -> bool:
        """True where the rows of a micro-batch are padded to its longest."""

    @abstractmethod
    def count_tokens(self, row: Row) -> int:
        """Return the number of tokens of a row that go through the model."""

    @abstractmethod
    def count_items(self, metric: str, batch: Batch) -> int:
        """Return how many items (pairs, or tokens) of a micro-batch TRL's metric of this name is a mean over."""

    @abstractmethod
    def row_outputs(self, model: torch.nn.Module, rows: list[Row]) -> Sequence[ModelOutput]:
        """For every row, what the model would return for it alone, from one forward of them all."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        collator, self.data_collator = self.data_collator, StepRows
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def get_batch_samples(
        self, epoch_iterator: Iterator[StepRows], num_batches: int, device: torch.device
    ) -> tuple[list[StepRows], Any]:
        """The rows of a step, and the normaliser of its loss where TRL has one: trained tokens, of all processes."""
        steps = list(islice(epoch_iterator, num_batches))
        _, items = super().get_batch_samples((self.data_collator(s.rows) for s in steps), num_batches, device)
        return steps, items

    def micro_batches(self, rows: list[Row]) -> list[list[Row]]:
        """The rows in micro-batches. Every process has as many: a forward over sharded weights needs all processes.
        The longest rows come first, to pad little; where a loss depends on what shares one, they stay in order."""
        if not self.cfg.by_micro_batch:
            rows = sorted(rows, key=self.count_tokens, reverse=True)
        if n := self.cfg.runtime.rows:
            return [rows[i : i + n] for i in range(0, len(rows), n)]
        assert self.token_budget is not None
        return self.divide_alike(rows, self.token_budget)

    def evaluation_batches(self, rows: list[Row]) -> list[list[Row]]:
        """The rows for forwards without gradients, the longest first. A forward has as many tokens at most as a
        micro-batch may have, however many rows that is."""
        if not rows:
            return []
        budget = self.token_budget or (self.cfg.runtime.rows or 1) * self.cfg.max_length
        return self.divide_alike(sorted(rows, key=self.count_tokens, reverse=True), budget)

    def divide_alike(self, rows: list[Row], budget: int) -> list[list[Row]]:
        """The rows in micro-batches of at most so many tokens; every process has as many."""
        device = self.accelerator.device
        costs = [self.count_tokens(row) for row in rows]
        count_here = torch.tensor([len(divide_rows(costs, budget, self.is_padded))], device=device)
        groups = divide_rows(
            costs, budget, self.is_padded, least_groups=int(self.accelerator.gather(count_here).max())
        )
        return [[rows[i] for i in group] for group in groups]

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> Any:
        # A forward of each row's own, made by TRL: for what needs more than per-token figures; and where there are
        # several processes, which share the rows out as they like, and of which a sharded forward needs all.
        row_by_row = self.aux_loss_enabled or self.label_smoother is not None or self.args.world_size > 1
        self.outputs.clear()
        rows: Any = dataloader.dataset
        self.rows_to_score = [] if row_by_row else list(rows)
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def prediction_step(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """TRL's, of one row in an evaluation, where the model's output is kept from a forward of many rows: loss and
        metrics are those of rows evaluated one by one."""
        if self.rows_to_score:
            rows, self.rows_to_score = self.rows_to_score, []
            outputs = dict[int, ModelOutput]()
            with torch.no_grad(), self.compute_loss_context_manager():
                for part in self.evaluation_batches(rows):
                    outputs |= zip(map(id, part), self.row_outputs(model, part), strict=True)
            self.outputs.extend(outputs[id(row)] for row in rows)
        stored_or_model = (lambda output: lambda **_: output)(self.outputs.popleft()) if self.outputs else model
        return super().prediction_step(stored_or_model, *args, **kwargs)

    def training_step(self, model: torch.nn.Module, inputs: StepRows, num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute the gradients of a step and return its loss; where memory runs out, again in smaller parts."""
        before = self.token_budget, self.checkpointing
        while True:
            try:
                loss = self.accumulate(model, inputs.rows, num_items_in_batch)
                break
            except OutOfMemory as error:
                too_large = error.rows
            self.make_room(model, too_large)  # after the except: until then the error keeps the micro-batch's tensors
        settings = self.token_budget, self.checkpointing
        if settings != before:
            self.out.warn(
                f"out of memory at step {self.state.global_step + 1}, which was done again. From there on, at most "
                f"{settings[0]} tokens at once, gradient checkpointing: {settings[1]}."
            )
            write_decision(self.out, *settings)
        return loss

    def accumulate(self, model: torch.nn.Module, rows: list[Row], items: Any) -> torch.Tensor:
        """Add up the gradients of all micro-batches, and return the loss.

        Raises:
            OutOfMemory: with the rows of the micro-batch that did not fit.
        """
        parts = self.micro_batches(rows)
        batches = [self.data_collator(part) for part in parts]
        loss = torch.zeros((), device=self.args.device)
        with average_over_step(self, batches, self.count_items):
            for i, (part, batch) in enumerate(zip(parts, batches, strict=True), 1):
                # Trainer divides the loss by this: a mean over a micro-batch then counts by its share of the rows.
                self.current_gradient_accumulation_steps: float = len(rows) / len(part)
                last = i == len(parts)
                self.accelerator.sync_gradients = last
                try:
                    with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                        loss += super().training_step(model, batch, items)
                except RuntimeError as error:
                    if should_reduce_batch_size(error):
                        raise OutOfMemory(part) from error
                    raise
        return loss

    def make_room(self, model: torch.nn.Module, too_large: list[Row]) -> None:
        """Drop the step's gradients, and lower the budget to half of micro-batch `full`, which did not fit. If that is
        a single row, recompute more activations instead.

        Raises:
            UserError: where neither is left to do, where `runtime.micro_batch` gives a number of rows, and where other
                processes, which still have memory, would wait for this one.
        """
        model.zero_grad()
        release_memory()
        lengths = [self.count_tokens(row) for row in too_large]
        tokens = len(too_large) * max(lengths) if self.is_padded else sum(lengths)
        recomputes_all = self.checkpointing is Checkpointing.full
        if self.cfg.runtime.rows or self.args.world_size > 1 or (len(too_large) == 1 and recomputes_all):
            raise out_of_memory_error(self.cfg, self.state.global_step + 1, len(too_large), tokens, self.checkpointing)
        if len(too_large) > 1:
            self.token_budget = tokens // 2
        else:
            kinds = self.cfg.checkpointings
            self.checkpointing = kinds[kinds.index(self.checkpointing) + 1]
            enable_checkpointing(self.model, self.checkpointing)
