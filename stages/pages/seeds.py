"""Several seeds of the same recipe: the results of each, and of all with every prompt's outcomes averaged."""

from pathlib import Path
from typing import Any

import numpy as np

from stages.config.blocks.evaluation import Eval
from stages.evaluation.checked import Checked
from stages.evaluation.intervals import Interval
from stages.evaluation.outcomes import Outcome, average_runs, effect_word, rate_row
from stages.store.manifest import Manifest
from stages.store.numbers import points
from stages.store.records import Example, load, stream
from stages.store.sealed_json import load_json, require_keys

ENOUGH_SEEDS = 3
PREFIX = "eval_seed_"


def read_runs(
    inputs: dict[str, Path], nodes: dict[str, Manifest], seed: int | None
) -> list[dict[str, Any]]:
    """Read every evaluation's results with its seed, the report's own (of `seed`, None if nothing trained) first."""
    seeds = {"eval": seed} | {
        role: int(role.removeprefix(PREFIX)) for role in inputs if role.startswith(PREFIX)
    }
    results = {
        role: load_json(inputs[role] / "results.json", require_keys("models")) for role in seeds
    }
    runs = {
        role: {"seed": seeds[role], "fingerprint": nodes[role]["fingerprint"], "role": role}
        for role in seeds
    }
    return [results[role] | run for role, run in runs.items()]


def summary(
    runs: list[dict[str, Any]], inputs: dict[str, Path], confidence: float
) -> dict[str, Any] | None:
    """Return rates and differences over all seeds by group of prompts, and a sentence on the primary endpoint. None
    for one seed, and without checks. `confidence`: that of the intervals."""
    first = runs[0]
    endpoint, main, policy = first["endpoint"], first["main_difference"], first["models"]["policy"]
    if len(runs) < 2 or not endpoint:
        return None
    outcomes = [load(inputs[run["role"]] / "outcomes.parquet", Outcome) for run in runs]
    asked = {row.prompt_id for row in outcomes[0]}
    data, outside = (
        {e.id: e for e in stream(inputs[name] / "examples.parquet", Example) if e.id in asked}
        if name in inputs
        else {}
        for name in ("data", "outside")
    )
    average = average_runs(outcomes, outside | data)
    is_own = np.array([e.id not in data for e in average.prompts], bool)
    checked = Checked(average.where(~is_own), average.where(is_own).by("task"))
    level = Eval(confidence=confidence)
    groups = {name: rate_row(table, level) for name, table in checked.groups.items()}
    delta = Interval(**groups[endpoint][main])
    differences = [Interval(**run["primary"][main]) for run in runs]
    gains = [of_seed.mean for of_seed in differences]
    better = sum(of_seed.low > 0 for of_seed in differences)
    worse = sum(of_seed.high < 0 for of_seed in differences)
    note = groups[endpoint]["note"]  # too few tasks to say
    effect = f"{note} whether {policy} helped" if note else f"{policy} {effect_word(delta)}"
    sentence = (
        f"Over {len(runs)} seeds, each prompt's outcomes averaged, {effect} on {endpoint}: "
        f"{points(delta.mean)} points ({delta.bounds()}; for these seeds only). By seed from "
        f"{points(min(gains))} to {points(max(gains))}; helped in {better}, hurt in {worse}."
    )
    if "policy-base" in first["differences"] and main != "policy-base":
        sentence += f" {first['differences']['policy-base']}: {Interval(**groups[endpoint]['policy-base']).points()}."
    if len(runs) < ENOUGH_SEEDS:
        sentence += f" Fewer than {ENOUGH_SEEDS} seeds say little about the recipe."
    return {"groups": groups, "sentence": sentence}
