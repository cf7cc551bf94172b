"""The number of rows that each source brings to sft, and the draw of these rows.

Quotas and a cap come first, then epochs or weights. With a cap alone this is examples-proportional mixing
(arXiv:1910.10683, section 3.5.2): a source counts for as many rows as it has, or for the cap. Rows are drawn by their
ids: a row that comes stays when the amount grows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.config.blocks.data import Mixture, Source

STEP, *ODD = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Amount(NamedTuple):
    """Of a source's rows for sft: how many of them are drawn, and how many come in all."""

    drawn: int
    total: int


def amounts(sources: Sequence[Source], mixture: Mixture, rows: Sequence[int]) -> list[Amount]:
    """What each source brings, of as many rows as it has."""
    drawn = list(rows)
    for task, quota in mixture.quotas.items():
        places = [i for i, source in enumerate(sources) if source.of_task == task]
        for i, share in zip(places, apportioned([rows[i] for i in places], quota), strict=True):
            drawn[i] = share
    drawn = [min(n, mixture.cap or n) for n in drawn]
    totals = [n * (source.epochs or 1.0) for n, source in zip(drawn, sources, strict=True)]
    weights = [source.weight or 0.0 for source in sources]
    if any(weights):
        scarcest = min(total / weight for total, weight in zip(totals, weights, strict=True) if weight)
        totals = [scarcest * weight for weight in weights]
    return [Amount(n, round(total)) for n, total in zip(drawn, totals, strict=True)]


def apportioned(rows: Sequence[int], quota: int) -> list[int]:
    """Return what each of several sources brings to a quota, in proportion to its rows: shares are rounded down, and
    what is left over goes to the largest remainders (Hamilton's method)."""
    total = sum(rows)
    if total <= quota:
        return [*rows]
    shares = [quota * n // total for n in rows]
    by_remainder = sorted(range(len(rows)), key=lambda i: -(quota * rows[i] % total))
    for i in by_remainder[: quota - sum(shares)]:
        shares[i] += 1
    return shares


def times(ids: NDArray[np.uint64], amount: Amount, seed: int) -> NDArray[np.int32]:
    """How often each of a source's rows comes."""
    found = np.zeros(len(ids), np.int32)
    if amount.drawn:
        order = np.argsort(shuffled(ids, seed), kind="stable")
        whole, rest = divmod(amount.total, amount.drawn)
        found[order[: amount.drawn]] = whole
        found[order[:rest]] += 1
    return found


def shuffled(ids: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Another number for every id, by a seed (the mixing of SplitMix64)."""
    mixed = ids + np.uint64((seed + 1) * STEP % 2**64)
    for shift, odd in zip((30, 27), ODD, strict=True):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(odd)
    return mixed ^ (mixed >> np.uint64(31))
