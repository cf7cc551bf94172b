"""Which share of candidates ended by themselves, what makes more of them end, and what becomes of the others."""

from pathlib import Path

from stages.config.choices import Unfinished
from stages.store.records import Candidate, Records

MOST = 0.5  # share of candidates: where fewer end, more variety is no way out, as it ends still fewer


def share_ended(pool: Path) -> float:
    """Return the share of a pool's candidates that ended by themselves; 1 where there is none."""
    reasons = Records(pool / "candidates.parquet", Candidate).column("finish_reason")
    return reasons.count("stop") / len(reasons) if reasons else 1.0


def resolve_unfinished(rule: Unfinished, share: float) -> Unfinished:
    """Return what becomes of unfinished completions where `share` of the candidates ended: keep or drop."""
    if rule is Unfinished.auto:
        return Unfinished.keep if share > MOST else Unfinished.drop
    return rule


def ending_advice(share: float, block: str = "sample") -> str:
    """Return what makes more candidates end, where this share did and that is not most; else ''. `block` says on the
    command line how they are drawn."""
    if share > MOST:
        return ""
    return (
        f"Only {share:.1%} of the candidates end by themselves: lower {block}.temperatures or raise "
        f"{block}.max_new_tokens"
    )
