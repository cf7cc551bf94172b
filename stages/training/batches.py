"""How many rows are trained and evaluated on, so that every optimizer step sees exactly `batch_size` of them."""

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from stages.config.errors import UserError

Row = TypeVar("Row")


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
    """Rows for an evaluation in several processes. Where they cannot be dealt out evenly, every row comes as often as
    there are processes: each process then has as many, and every row counts the same in the mean."""
    return rows * (processes if len(rows) % processes else 1)
