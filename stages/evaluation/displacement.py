"""Likelihood displacement: chosen completions lose probability together with rejected ones (arXiv:2402.13228)."""

from typing import Any

FELL = -0.3  # nats per token of chosen completions: each has lost a quarter of its probability


def displacement(figures: dict[str, float], held_out: list[dict[str, Any]]) -> str:
    """Return a warning if log-probs of both chosen and rejected held-out completions fell by more than FELL per token
    against the reference model, else ''."""
    if not held_out or "eval_logps/chosen" not in figures:
        return ""
    changes = {
        name: figures[f"eval_logps/{name}"] - sum(row[f"ref_{name}_logps"] for row in held_out) / len(held_out)
        for name in ("chosen", "rejected")
    }
    tokens = sum(len(row["chosen_ids"]) for row in held_out) / len(held_out)
    if max(changes.values()) > FELL * tokens:
        return ""
    return (
        "likelihood displacement: on held-out pairs, log-probs of chosen answers fell by "
        f"{-changes['chosen']:.1f} nats, those of rejected answers by {-changes['rejected']:.1f}. Try a higher "
        "dpo.beta, a lower dpo.learning_rate, or dpo.loss_type=[sigmoid,sft]."
    )
