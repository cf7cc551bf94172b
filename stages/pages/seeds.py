"""Several seeds of the same recipe: what each gave, and what they give together, every prompt's outcomes averaged."""

from pathlib import Path
from typing import Any

from stages.config.blocks.evaluation import Eval
from stages.evaluation.intervals import Interval
from stages.evaluation.outcomes import averaged, effect, rates
from stages.store.manifest import Manifest
from stages.store.numbers import points
from stages.store.records import Example, Outcome, load, stream
from stages.store.sealed_json import having, load_json

ENOUGH_SEEDS = 3
PREFIX = "eval_seed_"


def runs(inputs: dict[str, Path], nodes: dict[str, Manifest], seed: int | None) -> list[dict[str, Any]]:
    """Seed and results of every evaluation, the report's own first, which is of `seed`; None where nothing trained."""
    found = [{"seed": seed, "fingerprint": nodes["eval"]["fingerprint"], "role": "eval"}]
    found += [
        {"seed": int(role.removeprefix(PREFIX)), "fingerprint": nodes[role]["fingerprint"], "role": role}
        for role in inputs
        if role.startswith(PREFIX)
    ]
    return [load_json(inputs[str(run["role"])] / "results.json", having("models")) | run for run in found]


def summary(found: list[dict[str, Any]], inputs: dict[str, Path], confidence: float) -> dict[str, Any] | None:
    """Rates and differences by group of prompts over all seeds, and a sentence on the primary endpoint; None for one
    seed, and without checks. `confidence`: of the intervals."""
    first = found[0]
    endpoint, main, policy = first["endpoint"], first["main_difference"], first["models"]["policy"]
    if len(found) < 2 or not endpoint:
        return None
    outcomes = [load(inputs[run["role"]] / "outcomes.parquet", Outcome) for run in found]
    asked = {row.prompt_id for row in outcomes[0]}
    examples = {e.id: e for e in stream(inputs["data"] / "examples.parquet", Example) if e.id in asked}
    level = Eval(confidence=confidence)
    groups = {name: rates(table, level) for name, table in averaged(outcomes, examples).views().items()}
    delta = Interval(**groups[endpoint][main])
    each = [Interval(**run["primary"][main]) for run in found]
    gains = [of_seed.mean for of_seed in each]
    better, worse = sum(of_seed.low > 0 for of_seed in each), sum(of_seed.high < 0 for of_seed in each)
    sentence = (
        f"Over {len(found)} seeds, each prompt's outcomes averaged, {policy} {effect(delta)}: "
        f"{points(delta.mean)} points ({delta.bounds()}; of these seeds, whatever others give). By seed from "
        f"{points(min(gains))} to {points(max(gains))}; helped in {better}, hurt in {worse}."
    )
    if "policy-base" in first["differences"] and main != "policy-base":
        whole = Interval(**groups[endpoint]["policy-base"])
        sentence += f" {first['differences']['policy-base']}: {points(whole.mean)} points ({whole.bounds()})."
    if len(found) < ENOUGH_SEEDS:
        sentence += f" Fewer than {ENOUGH_SEEDS} seeds say little about the recipe."
    return {"groups": groups, "sentence": sentence}
