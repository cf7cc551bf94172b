"""An optimizer step in micro-batches that fit into memory, forward and backward, with the result of one for all rows.

A trainer is handed the rows of a whole step. How many of them go through the model together is decided here, in
tokens, and again where memory runs out. That moves no result: gradients add up under the step's normaliser, and the
metrics of a step are its means.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate.utils import release_memory
from accelerate.utils.memory import should_reduce_batch_size
from torch.utils.data import DataLoader
from transformers import Trainer

from stages.config.choices import Checkpointing
from stages.config.schema import DPO, SFT
from stages.config.trl_arguments import not_neutral, offered
from stages.models import lm_head
from stages.store.work import Work
from stages.training.budget import divide, exhausted, remember
from stages.training.checkpointing import enable
from stages.training.step_metrics import Batch, of_step

Row = dict[str, Any]


@dataclass
class Rows:
    """The rows of a step in this process, as the dataset holds them. Neither sequence nor mapping, so that nobody on
    the way looks into them for tensors."""

    rows: list[Row]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


class OutOfMemory(Exception):
    def __init__(self, rows: list[Row]):
        self.rows = rows


class MicroBatches(Trainer, ABC):
    """What our trainers do to a step; to be mixed in before TRL's."""

    def __init__(self, *args: Any, cfg: SFT | DPO, out: Work, **kwargs: Any):
        self.cfg, self.out = cfg, out
        self.token_budget, self.checkpointing = cfg.runtime.token_budget, cfg.runtime.gradient_checkpointing
        self.data_collator: Any  # set by TRL
        lm_head.install()
        super().__init__(*args, **kwargs)
        if self.checkpointing is Checkpointing.selective:  # the rest are for the arguments to say
            enable(self.model, self.checkpointing)

    @property
    @abstractmethod
    def padded(self) -> bool:
        """Whether the rows of a micro-batch are padded to its longest."""

    @abstractmethod
    def tokens(self, row: Row) -> int:
        """How many tokens of a row go through the model."""

    @abstractmethod
    def weight(self, metric: str, batch: Batch) -> int:
        """Of how many things in a micro-batch TRL's metric is the mean."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        collator, self.data_collator = self.data_collator, Rows
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def get_batch_samples(
        self, epoch_iterator: Iterator[Rows], num_batches: int, device: torch.device
    ) -> tuple[list[Rows], Any]:
        """The rows of a step, and its normaliser where TRL has one: trained tokens in all processes."""
        steps = list(islice(epoch_iterator, num_batches))
        _, items = super().get_batch_samples((self.data_collator(s.rows) for s in steps), num_batches, device)
        return steps, items

    def micro_batches(self, rows: list[Row]) -> list[list[Row]]:
        """The rows in micro-batches, as many in every process: where a model is divided, each forward needs all.
        Longest rows first, so that little is padded; as they come, where a loss depends on what comes together."""
        if not not_neutral(self.cfg):
            rows = sorted(rows, key=self.tokens, reverse=True)
        if n := self.cfg.runtime.rows:
            return [rows[i : i + n] for i in range(0, len(rows), n)]
        assert self.token_budget is not None
        budget, device = self.token_budget, self.accelerator.device
        costs = [self.tokens(row) for row in rows]
        mine = torch.tensor([len(divide(costs, budget, self.padded))], device=device)
        groups = divide(costs, budget, self.padded, least=int(self.accelerator.gather(mine).max()))
        return [[rows[i] for i in group] for group in groups]

    def training_step(self, model: torch.nn.Module, inputs: Rows, num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of a whole step, and its loss. Where memory runs out, it is done again with less at once."""
        before = self.token_budget, self.checkpointing
        while True:
            try:
                loss = self.accumulate(model, inputs.rows, num_items_in_batch)
                break
            except OutOfMemory as error:
                full = error.rows
            self.make_room(model, full)  # not before the error has let go of what it holds
        found = self.token_budget, self.checkpointing
        if found != before:
            self.out.warn(
                f"out of memory at step {self.state.global_step + 1}, which was done again. From there on, at most "
                f"{found[0]} tokens at once, gradient checkpointing: {found[1]}."
            )
            remember(self.out, *found)
        return loss

    def accumulate(self, model: torch.nn.Module, rows: list[Row], items: Any) -> torch.Tensor:
        """The gradients of all micro-batches, added up, and the loss.

        Raises:
            OutOfMemory: with the rows of the micro-batch that was too much.
        """
        parts = self.micro_batches(rows)
        batches = [self.data_collator(part) for part in parts]
        loss = torch.zeros((), device=self.args.device)
        with of_step(self, batches, self.weight):
            for i, (part, batch) in enumerate(zip(parts, batches, strict=True), 1):
                # Trainer divides by this, and so weighs a loss that is a mean over its rows.
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

    def make_room(self, model: torch.nn.Module, full: list[Row]) -> None:
        """Drop the step's gradients, and halve the budget after micro-batch `full`; of a single row, compute more
        activations again.

        Raises:
            UserError: where neither is left to do, a number of rows was asked for, or other processes wait.
        """
        model.zero_grad()
        release_memory()
        lengths = [self.tokens(row) for row in full]
        tokens = len(full) * max(lengths) if self.padded else sum(lengths)
        most = self.checkpointing is Checkpointing.full
        if self.cfg.runtime.rows or self.args.world_size > 1 or (len(full) == 1 and most):
            raise exhausted(self.cfg, self.state.global_step + 1, len(full), tokens, self.checkpointing)
        if len(full) > 1:
            self.token_budget = tokens // 2
        else:
            kinds = offered(self.cfg)
            self.checkpointing = kinds[kinds.index(self.checkpointing) + 1]
            enable(self.model, self.checkpointing)
