"""What the report says of a reward model: on pairs held out of its training, and on the chain's candidates."""

from collections.abc import Mapping
from typing import Any

from stages.store.manifest import Manifest

SCORED_BY = ("label_reward_model", "label")  # whose labeler a reward model may be: in an ensemble, or alone


def of_reward(nodes: Mapping[str, Manifest]) -> dict[str, Any]:
    """Its figures: `trained`, where this run trained it and pairs were held out; `scored`, the best of n by score with
    the checks passed, where it labelled prompts that have checks. Nothing where there is neither."""
    found = dict[str, Any]()
    trained = nodes["reward"]["metrics"] if "reward" in nodes else {}
    if "accuracy" in trained:
        found["trained"] = trained
    for name in SCORED_BY:
        metrics = nodes[name]["metrics"] if name in nodes else {}
        if metrics.get("labeler") == "reward_model" and "best_of" in metrics:
            found["scored"] = metrics
            break
    return found
