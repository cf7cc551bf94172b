"""Truncated candidates: the share that ended by themselves, advice for more of these, and the rule for the others."""

from collections import Counter
from pathlib import Path

from stages.config.choices import Unfinished
from stages.store.records import Candidate, Records

# share of candidates: if fewer end, a higher temperature is no remedy, since still fewer would end
MOST = 0.5


def share_ended(pool: Path) -> float:
    """Return the share of a pool's candidates that ended by themselves; 1 for an empty pool."""
    reasons = Counter(Records(pool / "candidates.parquet", Candidate).column("finish_reason"))
    return reasons["stop"] / reasons.total() if reasons else 1.0


def resolve_unfinished(rule: Unfinished, share: float) -> Unfinished:
    """Return keep or drop for truncated completions. `share` is the share of candidates that ended by themselves."""
    decided = Unfinished.keep if share > MOST else Unfinished.drop
    return decided if rule is Unfinished.auto else rule


def ending_advice(share: float, block: str = "sample") -> str:
    """Return advice if at most half of the candidates ended, else ''. `block`: the sampling block as typed."""
    ended = f"Only {share:.1%} of the candidates end by themselves, the others are truncated"
    way_out = f"Lower {block}.temperatures or raise {block}.max_new_tokens"
    return "" if share > MOST else f"{ended}. {way_out}"
