"""The number of rows that each source contributes to sft. Quotas and the cap are applied first, then epochs or
weights. A cap alone is examples-proportional mixing (arXiv:1910.10683, section 3.5.2): a source counts with its number
of rows, or with the cap."""

from collections.abc import Sequence
from typing import NamedTuple

from stages.config.blocks.data import Mixture, Source


class Amount(NamedTuple):
    """The rows of a source for sft: `drawn` different rows, and `total` rows including repetitions."""

    drawn: int
    total: int


def plan_amounts(sources: Sequence[Source], mixture: Mixture, rows: Sequence[int]) -> list[Amount]:
    """Return the amount of each source, from the number of rows that each source has."""
    drawn = list(rows)
    for task, quota in mixture.quotas.items():
        places = [i for i, source in enumerate(sources) if source.task_name == task]
        for i, share in zip(places, apportion([rows[i] for i in places], quota), strict=True):
            drawn[i] = share
    drawn = [min(n, mixture.cap or n) for n in drawn]
    totals = [n * (source.epochs or 1.0) for n, source in zip(drawn, sources, strict=True)]
    weights = [source.weight or 0.0 for source in sources]
    if any(weights):
        scarcest = min(total / weight for total, weight in zip(totals, weights, strict=True) if weight)
        totals = [scarcest * weight for weight in weights]
    return [Amount(n, round(total)) for n, total in zip(drawn, totals, strict=True)]


def apportion(rows: Sequence[int], quota: int) -> list[int]:
    """Return the number of rows that each source contributes to a quota, in proportion to its rows. Shares are rounded
    down, and the remaining rows go to the largest remainders (Hamilton's method)."""
    total = sum(rows)
    if total <= quota:
        return [*rows]
    shares = [quota * n // total for n in rows]
    by_remainder = sorted(range(len(rows)), key=lambda i: -(quota * rows[i] % total))
    for i in by_remainder[: quota - sum(shares)]:
        shares[i] += 1
    return shares
