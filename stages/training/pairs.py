"""What a training on pairs tells of them."""

from collections.abc import Sequence
from typing import Any

from transformers import Trainer

from stages.training.batches import Turns


def trained_pairs(
    trainer: Trainer, turns: Turns, tokens: Sequence[int], held_out: int, dropped: dict[str, int]
) -> dict[str, Any]:
    """Where and in how many steps it trained, on how many pairs and tokens, and how many pairs it did not see.
    `tokens`: those that a step reads of each pair."""
    steps = trainer.state.global_step
    seen = turns.seen(steps)
    return {
        "device": str(trainer.args.device),
        "processes": trainer.args.world_size,
        "pairs": turns.rows,
        "pairs_cut": turns.left_out,
        "pairs_unseen": turns.rows - len(seen),
        "pairs_dropped": dropped,
        "held_out": held_out,
        "steps": steps,
        "tokens": sum(times * tokens[i] for i, times in seen.items()),
    }
