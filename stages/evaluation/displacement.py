"""Likelihood displacement: log-probs of chosen completions that fall together with those of rejected ones
(arXiv:2402.13228, arXiv:2410.08847)."""

from typing import Any

FELL = -0.3  # nats per token of chosen completions: each has lost a quarter of its probability


def displacement(figures: dict[str, float], held_out: list[dict[str, Any]]) -> str:
    """A warning where log-probs of chosen completions fell together with those of rejected ones, by more than the
    report calls normal: measured on the held-out pairs against the reference. Else ''."""
    if not held_out or "eval_logps/chosen" not in figures:
        return ""
    moved = {
        name: figures[f"eval_logps/{name}"] - sum(row[f"ref_{name}_logps"] for row in held_out) / len(held_out)
        for name in ("chosen", "rejected")
    }
    tokens = sum(len(row["chosen_ids"]) for row in held_out) / len(held_out)
    if max(moved.values()) > FELL * tokens:
        return ""
    return (
        f"likelihood displacement: on held-out pairs, log-probs of chosen fell by {-moved['chosen']:.1f} nats while "
        f"those of rejected fell by {-moved['rejected']:.1f}. A higher beta, a lower learning rate, or more of an sft "
        "term in dpo.loss_type keeps them up."
    )
