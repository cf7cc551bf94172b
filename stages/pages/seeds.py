"""Several seeds of the same recipe: what each gave, and what they give together, every prompt's outcomes averaged."""

from pathlib import Path
from typing import Any

from stages.config.blocks.evaluation import Eval
from stages.evaluation.intervals import Interval
from stages.evaluation.outcomes import PRIMARY, averaged, effect, rates
from stages.store.manifest import Manifest
from stages.store.numbers import points
from stages.store.records import Example, Outcome, load, stream
from stages.store.sealed_json import having, load_json

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
        run |= {name: results[name] for name in ("models", "differences", "primary", "mean_tokens", "stop_rate")}
    return found


def more(evaluation: Manifest, found: list[dict[str, Any]]) -> str:
    """The command of an evaluation under the two seeds after its own."""
    seed = found[0]["seed"]
    return evaluation["command"].replace(" stage=eval", "", 1) + f" 'seeds=[{seed + 1},{seed + 2}]'"


def summary(
    found: list[dict[str, Any]], inputs: dict[str, Path], endpoint: str, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Rates and differences by group of prompts over all seeds, and a sentence on the `endpoint`; None for one seed.
    `settings`: of the evaluation."""
    if len(found) < 2:
        return None
    outcomes = [load(inputs[run["role"]] / "outcomes.parquet", Outcome) for run in found]
    asked = {row.prompt_id for row in outcomes[0]}
    examples = {e.id: e for e in stream(inputs["data"] / "examples.parquet", Example) if e.id in asked}
    level = Eval(confidence=settings["confidence"])
    groups = {name: rates(table, level) for name, table in averaged(outcomes, examples).views().items()}
    delta, whole = (Interval(**groups[endpoint][name]) for name in (PRIMARY, "policy-base"))
    each = [Interval(**run["primary"][PRIMARY]) for run in found]
    gains = [of_seed.mean for of_seed in each]
    helped, hurt = sum(of_seed.low > 0 for of_seed in each), sum(of_seed.high < 0 for of_seed in each)
    sentence = (
        f"Over {len(found)} seeds, each prompt's outcomes averaged, {found[0]['models']['policy']} {effect(delta)}: "
        f"{points(delta.mean)} points ({delta.bounds()}; of these seeds, whatever others give). By seed from "
        f"{points(min(gains))} to {points(max(gains))}; "
        f"helped in {helped}, hurt in {hurt}. {found[0]['differences']['policy-base']}: {points(whole.mean)} points "
        f"({whole.bounds()})."
    )
    if len(found) < ENOUGH_SEEDS:
        sentence += f" Fewer than {ENOUGH_SEEDS} seeds say little about the recipe."
    return {"groups": groups, "sentence": sentence}
