"""Several seeds of the same recipe: what each gave, with mean and range."""

from pathlib import Path
from typing import Any

import numpy as np

from stages.evaluation.outcomes import PRIMARY
from stages.pages.environment import points
from stages.store.kept import having, load_json
from stages.store.store import Manifest

ENOUGH_SEEDS = 3
PREFIX = "eval_seed_"


def runs(inputs: dict[str, Path], nodes: dict[str, Manifest]) -> list[dict[str, Any]]:
    """Seed and results of every evaluation, the report's own first."""
    policy = nodes[nodes["eval"]["inputs"]["policy"]["stage"]]
    found = [{"seed": policy["settings"]["seed"], "fingerprint": nodes["eval"]["fingerprint"], "role": "eval"}]
    found += [
        {"seed": int(role.removeprefix(PREFIX)), "fingerprint": nodes[role]["fingerprint"], "role": role}
        for role in inputs
        if role.startswith(PREFIX)
    ]
    for run in found:
        results = load_json(inputs[run["role"]] / "results.json", having("models"))
        run["unseen"] = results["groups"].get("unseen tasks")
        run |= {name: results[name] for name in ("models", "differences", "primary", "mean_tokens", "stop_rate")}
    return found


def summary(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Mean and range of rates and differences over seeds, and a sentence; None for one seed."""
    if len(found) < 2:
        return None
    names = [*found[0]["models"], *found[0]["differences"]]
    table = {name: [run["primary"][name]["mean"] for run in found] for name in names}
    rows = {
        name: {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}
        for name, values in table.items()
    }
    gain = rows[PRIMARY]
    above = sum(run["primary"][PRIMARY]["low"] > 0 for run in found)
    below = sum(run["primary"][PRIMARY]["high"] < 0 for run in found)
    sentence = (
        f"Over {len(found)} seeds: {points(gain['mean'])} points on average, from {points(gain['low'])} to "
        f"{points(gain['high'])}; helped in {above}, hurt in {below}."
    )
    if len(found) < ENOUGH_SEEDS:
        sentence += f" Fewer than {ENOUGH_SEEDS} seeds say little about the recipe."
    return {"rows": rows, "sentence": sentence}
