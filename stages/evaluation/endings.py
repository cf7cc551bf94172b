"""What a verdict says of the answers that end by themselves: a gain or a loss on answers without an end is another."""

import numpy as np

from stages.config.blocks.evaluation import Eval
from stages.evaluation.intervals import Interval
from stages.evaluation.outcomes import PRIMARY, Table, with_intervals
from stages.store.truncation import MOST


def endings_clause(table: Table, titles: dict[str, str], cfg: Eval) -> str:
    """Return what a verdict adds where the policy ends fewer of its answers than SFT, by more than noise, or where it
    ends few of them; else ''."""
    row = with_intervals(table, np.asarray(table.stopped), cfg)
    sft, policy = row["sft"]["mean"], row["policy"]["mean"]
    if Interval(**row[PRIMARY]).high < 0:
        return f", and ends fewer of its answers by itself: {sft:.1%} → {policy:.1%}"
    if policy <= MOST:
        return f", and ends only {policy:.1%} of its answers by itself ({titles['sft']} {sft:.1%})"
    return ""
