"""Compute an optimizer step in micro-batches that fit into memory, with the result of a single batch.

A trainer gets the rows of a whole step and divides them by a budget of tokens per micro-batch; if memory runs out, by
a lower one. The division does not change gradients, which add up under the step's normaliser. Nor does it change a
metric of a step: TRL notes a mean for each micro-batch, and its weight is the number of rows or tokens in it."""

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

import torch
from accelerate.utils import gather, release_memory
from accelerate.utils.memory import should_reduce_batch_size
from torch.utils.data import DataLoader

from stages.config.blocks.objective import Training
from stages.config.choices import Checkpointing, Sharding
from stages.models import lm_head
from stages.models.packing import ATTENTION, add_layout, attention_name, send_batch
from stages.models.scoring import divide_rows
from stages.store.workspace import StageDir
from stages.training.budget import enable_checkpointing, out_of_memory_error, write_decision
from stages.training.token_rows import Row
from stages.training.trainer import PlumblineTrainer

Batch = dict[str, Any]  # tensors, and in packed batches `layout`
OTHERS = ""  # the key of the weight of all metrics that have no weight of their own


@dataclass
class StepRows:
    """The rows of a step in this process, in the dataset's format. It is neither sequence nor mapping, because Trainer
    and accelerate would search those for tensors to move or count. Trainer asks for names in it."""

    rows: list[Row]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


class OutOfMemory(Exception):
    def __init__(self, rows: list[Row]):
        self.rows = rows


class MicroBatches(PlumblineTrainer, ABC):
    """Mixin before a TRL trainer that computes its steps in micro-batches. `arguments` are TRL arguments for it."""

    arguments: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: Any, cfg: Training, out: StageDir, **kwargs: Any):
        self.cfg = cfg
        self.out = out
        self.token_budget = cfg.runtime.token_budget
        self.checkpointing = cfg.runtime.gradient_checkpointing
        self.data_collator: Any  # TRL sets it, and
        self._metrics: dict[str, dict[str, list[float]]]
        self._total_train_tokens: int
        # of each mean in TRL's `_metrics`, in the same order
        self.weights: dict[str, dict[str, list[float]]] = {
            "train": defaultdict(list),
            "eval": defaultdict(list),
        }
        lm_head.install_cpu_head()
        super().__init__(*args, **kwargs)
        if self.args.world_size > 1:
            # TRL's metrics of rows; with unequal numbers of them, NCCL waits for ever and gloo aborts
            self.accelerator.gather = self.gather_rows
        # TRL's arguments set the kinds none and full
        if self.checkpointing is Checkpointing.selective:
            enable_checkpointing(self.model, self.checkpointing)

    @property
    def is_padded(self) -> bool:
        """True if the rows of a micro-batch are padded to the longest."""
        return attention_name(self.model) != ATTENTION

    @abstractmethod
    def count_tokens(self, row: Row) -> int:
        """Return the number of tokens of a row that go through the model."""

    def collate(self, rows: list[Row]) -> Batch:
        """Return rows as a batch on the CPU, with the layout of its runs if the model reads packed rows."""
        return add_layout(self.model, self.data_collator(rows))

    def get_train_dataloader(self) -> DataLoader[Any]:
        collator = self.data_collator
        self.data_collator = StepRows
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def get_batch_samples(
        self, epoch_iterator: Iterator[StepRows], num_batches: int, device: torch.device
    ) -> tuple[list[StepRows], Any]:
        """Return the rows of a step, and TRL's normaliser of its loss, if any: the trained tokens in all processes."""
        steps = list(itertools.islice(epoch_iterator, num_batches))
        # One process has nothing to gather, and Trainer would wait for the device to copy the number there.
        if self.args.world_size == 1:
            device = torch.device("cpu")
        batches = (self.data_collator(step.rows) for step in steps)
        _, items = super().get_batch_samples(batches, num_batches, device)
        return steps, items

    def micro_batches(self, rows: list[Row]) -> list[list[Row]]:
        """Return the rows in micro-batches, equally many in every process: a forward over sharded weights needs all
        processes. The longest rows come first, to save padding, unless the loss depends on a micro-batch's rows."""
        if not self.cfg.depends_on_micro_batch:
            rows = sorted(rows, key=self.count_tokens, reverse=True)
        size = self.cfg.runtime.rows
        if size:
            return [rows[i : i + size] for i in range(0, len(rows), size)]
        assert self.token_budget is not None
        return self.divide_alike(rows, self.token_budget)

    def divide_alike(self, rows: list[Row], budget: int) -> list[list[Row]]:
        """Return the rows in micro-batches of at most `budget` tokens, equally many in every process."""
        costs = [self.count_tokens(row) for row in rows]
        groups = divide_rows(costs, budget, self.is_padded)
        if self.args.world_size > 1:
            count_here = torch.tensor([len(groups)], device=self.accelerator.device)
            most = int(self.accelerator.gather(count_here).max())
            groups = divide_rows(costs, budget, self.is_padded, most)
        parts = list[list[Row]]()
        for group in groups:
            parts.append([rows[i] for i in group])
        return parts

    def gather_rows(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of all processes, which may have different numbers of rows."""
        if not values.ndim:
            return gather(values)  # type: ignore[no-any-return]
        counts: list[int] = gather(torch.tensor([len(values)], device=values.device)).tolist()
        most = max(counts)
        padding = values.new_zeros(most - len(values), *values.shape[1:])
        parts = gather(torch.cat([values, padding])).split(most)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def training_step(
        self, model: torch.nn.Module, inputs: StepRows, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Compute the gradients of a step and return its loss. If memory runs out, retry the step in smaller parts."""
        before = self.token_budget, self.checkpointing
        tokens = self._total_train_tokens
        while True:
            try:
                loss = self.accumulate(model, inputs.rows, num_items_in_batch)
                break
            except OutOfMemory as error:
                too_large = error.rows
            # inside `except`, the error would still hold the micro-batch's tensors
            self.make_room(model, too_large)
            self.forget_metrics("train")
            self._total_train_tokens = tokens
        if (self.token_budget, self.checkpointing) != before:
            repeated = f"out of memory at step {self.state.global_step + 1}, which was repeated"
            limit = f"at most {self.token_budget} tokens, with gradient checkpointing {self.checkpointing}"
            self.out.warn(f"{repeated}. From this step on, a micro-batch has {limit}.")
            write_decision(self.out, self.token_budget, self.checkpointing)
        return loss

    def accumulate(self, model: torch.nn.Module, rows: list[Row], items: Any) -> torch.Tensor:
        """Add up the gradients of all micro-batches, and return the loss. Raise OutOfMemory with the rows too many."""
        parts = self.micro_batches(rows)
        batches = [self.collate(part) for part in parts]
        loss = torch.zeros((), device=self.args.device)
        for i, (part, batch) in enumerate(zip(parts, batches, strict=True), 1):
            # Trainer divides the loss by this number, so a micro-batch's mean has the weight of its rows.
            self.current_gradient_accumulation_steps: float = len(rows) / len(part)
            last = i == len(parts)
            self.accelerator.sync_gradients = last
            # Without a reduction, sharded gradients would be whole in every process.
            reduce = last or self.cfg.runtime.sharding is not Sharding.none
            try:
                with contextlib.nullcontext() if reduce else self.accelerator.no_sync(model):
                    on_device = send_batch(batch, self.args.device)
                    loss += super().training_step(model, on_device, items)
            except RuntimeError as error:
                if should_reduce_batch_size(error):
                    raise OutOfMemory(part) from error
                raise
        return loss

    @property
    def mode(self) -> str:
        """The key of TRL's metrics that are noted now."""
        return "train" if self.model.training else "eval"

    def compute_loss(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        """Return TRL's loss, and note the weights of the means that TRL adds to its metrics."""
        counts = self.count_terms(inputs)
        on_device = [torch.as_tensor(each, device=self.args.device) for each in counts.values()]
        of_all = self.accelerator.reduce(torch.stack(on_device).float(), "sum")
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        # the copy waits for the device, so it comes behind the forward
        weight_by_name = dict(zip(counts, of_all.tolist(), strict=True))
        weights = self.weights[self.mode]
        for name, means in self._metrics[self.mode].items():
            if len(weights[name]) < len(means):
                weights[name].append(weight_by_name.get(name, weight_by_name[OTHERS]))
        return loss

    def count_terms(self, batch: Batch) -> dict[str, int | torch.Tensor]:
        """Return the number of rows or tokens of a batch that each of TRL's metrics is the mean of: by name, and under
        OTHERS of all others. A trainer that notes all its metrics itself needs no counts."""
        raise NotImplementedError

    def note(self, metric: str, total: torch.Tensor, count: torch.Tensor) -> None:
        """Add a metric's sum over some rows or tokens of a micro-batch, of all processes. `count` is their number."""
        sums = self.accelerator.reduce(torch.stack([total.detach(), count]).float(), "sum")
        sum_of_all, count_of_all = sums.tolist()
        if count_of_all:
            self._metrics[self.mode][metric].append(sum_of_all / count_of_all)
            self.weights[self.mode][metric].append(count_of_all)

    def summarize(self, mode: str) -> dict[str, float]:
        """Return the mean of every metric since the last log, over the rows or tokens of all micro-batches."""
        means = dict[str, float]()
        for name, values in self._metrics[mode].items():
            weights = self.weights[mode].get(name) or [1.0]
            if sum(weights):
                means[name] = fmean(values, weights)
            else:  # no micro-batch has a token of the metric
                means[name] = fmean(values)
        return means

    def forget_metrics(self, mode: str) -> None:
        """Drop the metrics since the last log."""
        self._metrics[mode].clear()
        self.weights[mode].clear()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the metrics since the last log. TRL's `log` then has one value to average."""
        for name, mean in self.summarize(self.mode).items():
            self._metrics[self.mode][name] = [mean]
        self.weights[self.mode].clear()
        super().log(logs, start_time)

    def note_tokens(self, count: torch.Tensor) -> None:
        """Add a micro-batch's tokens of all processes to TRL's metric of how many were trained so far."""
        self._total_train_tokens += int(self.accelerator.gather(count.reshape(1)).sum())
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

    def is_divisible(self, rows: list[Row]) -> bool:
        """Return whether a micro-batch can be divided into smaller ones."""
        return len(rows) > 1

    def make_room(self, model: torch.nn.Module, too_large: list[Row]) -> None:
        """Drop the step's gradients, and lower the budget to half of the micro-batch `too_large`. If that cannot be
        divided, recompute more activations instead. Raise UserError if neither is possible, if `runtime.micro_batch`
        sets the number of rows, or if other processes, which still have memory, would wait for this one."""
        model.zero_grad()
        release_memory()
        lengths = [self.count_tokens(row) for row in too_large]
        tokens = len(too_large) * max(lengths) if self.is_padded else sum(lengths)
        recomputes_all = self.checkpointing is Checkpointing.full
        divisible = self.is_divisible(too_large)
        if self.cfg.runtime.rows or self.args.world_size > 1 or (recomputes_all and not divisible):
            raise out_of_memory_error(
                self.cfg, self.state.global_step + 1, len(too_large), tokens, self.checkpointing
            )
        if divisible:
            self.token_budget = tokens // 2
        else:
            kinds = self.cfg.usable_checkpointings
            self.checkpointing = kinds[kinds.index(self.checkpointing) + 1]
            enable_checkpointing(self.model, self.checkpointing)
