"""The number of rows that each source brings to sft.

Quotas and a cap come first, then epochs or weights. With a cap alone this is examples-proportional mixing
(arXiv:1910.10683, section 3.5.2): a source counts for as many rows as it has, or for the cap.
"""

from collections.abc import Sequence
from typing import NamedTuple

from stages.config.blocks.data import Mixture, Source


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
