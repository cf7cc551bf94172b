"""Drawing the rows of a source that come in sft, and how often. Rows are drawn by their ids: a row that comes stays
when the amount grows."""

import numpy as np
from numpy.typing import NDArray

from stages.curation.shares import Amount

STEP, *ODD = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


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
