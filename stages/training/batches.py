"""Choose the rows of every optimizer step, so that each step has exactly `batch_size` rows."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate
from operator import itemgetter

import torch
from torch.utils.data import Sampler

from stages.config.errors import UserError


class EpochSchedule:
    """The shuffled rows of each epoch, in whole batches. Rows that do not fill a batch are skipped in turn, by
    descending hash of their id. Consecutive epochs never skip the same row, so two epochs contain all rows."""

    def __init__(self, ids: Sequence[str], batch_size: int, seed: int, key: str):
        if len(ids) < batch_size:
            raise UserError(
                f"{key}: {len(ids)} rows do not fill one batch of {batch_size}. Lower {key}.batch_size."
            )
        self.row_count = len(ids)
        self.batch_size = batch_size
        self.seed = seed
        self.key = key
        self.steps, self.left_out = divmod(len(ids), batch_size)  # per epoch
        hashed = [hashlib.sha256(name.encode()).digest() for name in ids]
        self.order = sorted(range(len(ids)), key=hashed.__getitem__, reverse=True)

    def epoch(self, number: int) -> list[int]:
        """Return the row indices of an epoch, counted from 0, in training order."""
        first = number * self.left_out
        skipped = {self.order[i % self.row_count] for i in range(first, first + self.left_out)}
        trained = [i for i in range(self.row_count) if i not in skipped]
        shuffled = torch.randperm(
            len(trained), generator=torch.Generator().manual_seed(self.seed + number)
        )
        return [trained[i] for i in shuffled.tolist()]

    def step(self, number: int) -> list[int]:
        """Return the row indices of a step, counted from 0 over all epochs."""
        epoch, place = divmod(number, self.steps)
        first = place * self.batch_size
        return self.epoch(epoch)[first : first + self.batch_size]

    def times_seen(self, steps: int) -> Counter[int]:
        """Return how often the first `steps` steps of a training contain each row."""
        times = Counter[int]()
        for done in range(0, steps, self.steps):
            times.update(self.epoch(done // self.steps)[: (steps - done) * self.batch_size])
        return times

    def unseen_message(self, steps: int, noun: str) -> str:
        """Return a warning if `steps` steps, of an epoch or more, do not contain every row, else ''."""
        if steps < self.steps:
            return ""
        unseen = self.row_count - len(self.times_seen(steps))
        if not unseen:
            return ""
        problem = f"training for {steps} steps did not reach {unseen} of {self.row_count} {noun}"
        way_out = f"Set {self.key}.epochs=2, or a batch_size that divides {self.row_count}."
        return f"{self.key}.batch_size={self.batch_size}: {problem}. {way_out}"


class EpochSampler(Sampler[int]):
    """Yield the rows of the current epoch, which follows from `steps()`, the finished ones and all, or none after all.
    (Trainer does not end within an epoch when it resumes, and accelerate does not tell the epoch to a sampler.)"""

    def __init__(self, schedule: EpochSchedule, steps: Callable[[], tuple[int, int]]):
        self.schedule = schedule
        self.steps = steps

    def __len__(self) -> int:
        return self.schedule.steps * self.schedule.batch_size

    def __iter__(self) -> Iterator[int]:
        done, total = self.steps()
        if 0 < total <= done:
            return iter(())
        return iter(self.schedule.epoch(done // self.schedule.steps))


def fill_batches(bins: list[list[int]], batch_size: int) -> list[list[int]]:
    """Split the fullest packed rows between two conversations until the rows fill whole batches. A packed row is the
    list of its conversations' lengths. If there are too few conversations, return the rows unchanged."""
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
    """Split a packed row between two conversations into halves with lengths as equal as possible."""
    ends = [*accumulate(row)]
    differences = [abs(2 * end - ends[-1]) for end in ends[:-1]]  # between the halves
    first_half = 1 + differences.index(min(differences))
    return row[:first_half], row[first_half:]
