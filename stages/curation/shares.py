"""The number of rows that each source brings to sft: quotas and a cap first, then epochs or weights.

With a cap alone this is examples-proportional mixing (arXiv:1910.10683, section 3.5.2): a source counts for as many
rows as it has, or for the cap.
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
        mine = [i for i, source in enumerate(sources) if source.of_task == task]
        every, before = sum(rows[i] for i in mine), 0
        for i in mine if every > quota else ():  # in proportion, and none lost in rounding
            drawn[i] = quota * (before + rows[i]) // every - quota * before // every
            before += rows[i]
    drawn = [min(n, mixture.cap or n) for n in drawn]
    totals = [n * (source.epochs or 1.0) for n, source in zip(drawn, sources, strict=True)]
    weights = [source.weight or 0.0 for source in sources]
    if any(weights):
        scarcest = min(total / weight for total, weight in zip(totals, weights, strict=True) if weight)
        totals = [scarcest * weight for weight in weights]
    return [Amount(n, round(total)) for n, total in zip(drawn, totals, strict=True)]
