"""Which rows are trained and evaluated on, so that every optimizer step sees exactly `batch_size` of them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate
from operator import itemgetter
from typing import TypeVar

import torch
from torch.utils.data import Sampler

from stages.config.errors import UserError

Row = TypeVar("Row")


class EpochSchedule:
    """The rows of each epoch, shuffled, in whole batches. Rows that fill no batch are left out in turn, by the hash of
    their id, the highest first: no row is left out of two epochs that follow each other, so that two see them all."""

    def __init__(self, ids: Sequence[str], batch_size: int, seed: int, key: str):
        if len(ids) < batch_size:
            raise UserError(f"{key}: {len(ids)} rows are fewer than one batch of {batch_size}. Lower batch_size.")
        self.row_count, self.batch_size, self.seed = len(ids), batch_size, seed
        self.steps, self.left_out = divmod(len(ids), batch_size)  # of an epoch
        hashed = [hashlib.sha256(name.encode()).digest() for name in ids]
        self.order = sorted(range(len(ids)), key=hashed.__getitem__, reverse=True)

    def epoch(self, number: int) -> list[int]:
        """The rows of an epoch, counted from 0, in the order in which they are trained."""
        first = number * self.left_out
        skipped = {self.order[i % self.row_count] for i in range(first, first + self.left_out)}
        trained = [i for i in range(self.row_count) if i not in skipped]
        shuffled = torch.randperm(len(trained), generator=torch.Generator().manual_seed(self.seed + number))
        return [trained[i] for i in shuffled.tolist()]

    def times_seen(self, steps: int) -> Counter[int]:
        """How often the first steps of a training see each row."""
        times = Counter[int]()
        for done in range(0, steps, self.steps):
            times.update(self.epoch(done // self.steps)[: (steps - done) * self.batch_size])
        return times

    def unseen_message(self, steps: int, noun: str) -> str:
        """A warning where rows are in none of the first steps; else ''."""
        if not (unseen := self.row_count - len(self.times_seen(steps))):
            return ""
        return (
            f"{unseen} of {self.row_count} {noun} are in no step: there are {steps} of {self.batch_size}, an epoch has "
            f"{self.steps}. Two epochs see every row; a batch_size that divides {self.row_count} leaves none out."
        )


class EpochSampler(Sampler[int]):
    """The rows of the epoch that `step`, the number of steps done, is in. (A sampler is usually told its epoch; but
    where several processes resume within one, accelerate does not reach a sampler of one's own.)"""

    def __init__(self, schedule: EpochSchedule, step: Callable[[], int]):
        self.turns, self.step = schedule, step

    def __len__(self) -> int:
        return self.turns.steps * self.turns.batch_size

    def __iter__(self) -> Iterator[int]:
        return iter(self.turns.epoch(self.step() // self.turns.steps))


def fill_batches(bins: list[list[int]], batch_size: int) -> list[list[int]]:
    """Packed rows, as the lengths of their conversations, that fill whole batches: the fullest are split, between two
    conversations. Where there are fewer conversations than that takes, the rows stay as they are."""
    missing = -len(bins) % batch_size
    if len(bins) + missing > sum(map(len, bins)):
        return bins
    fullest: list[tuple[bool, int, tuple[int, ...], list[int]]]
    fullest = [(len(row) == 1, -sum(row), (i,), row) for i, row in enumerate(bins)]
    heapify(fullest)
    for _ in range(missing):
        _, _, place, row = heappop(fullest)
        for side, half in enumerate(split_packed_row(row)):
            heappush(fullest, (len(half) == 1, -sum(half), (*place, side), half))
    return [row for *_, row in sorted(fullest, key=itemgetter(2))]


def split_packed_row(row: list[int]) -> tuple[list[int], list[int]]:
    """A packed row as two, as alike in length as its conversations allow."""
    ends = [*accumulate(row)]
    first_half = min(range(1, len(ends)), key=lambda i: abs(2 * ends[i - 1] - ends[-1]))
    return row[:first_half], row[first_half:]


def repeat_evenly(rows: list[Row], processes: int) -> list[Row]:
    """Rows for an evaluation in several processes. Where they cannot be dealt out evenly, every row comes as often as
    there are processes: each process then has as many, and every row counts the same in the mean."""
    return rows * (processes if len(rows) % processes else 1)
