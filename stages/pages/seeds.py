"""Several seeds of the same recipe: the results of each, and of all with every prompt's outcomes averaged."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.config.blocks.evaluation import Eval
from stages.evaluation import claims
from stages.evaluation.checked import Checked
from stages.evaluation.outcomes import Outcome, average_runs, rate_row
from stages.evaluation.results import Results, Row, read_results
from stages.store.manifest import Manifest
from stages.store.numbers import points
from stages.store.records import Example, load, stream

ENOUGH_SEEDS = 3
PREFIX = "eval_seed_"


@dataclass(frozen=True)
class SeedRun:
    """The evaluation of one seed, None if the run trained nothing. `role`: the report's input."""

    seed: int | None
    role: str
    fingerprint: str
    results: Results


@dataclass(frozen=True)
class OverSeeds:
    """Rates and differences over all seeds by group of prompts, and a sentence on the primary endpoint."""

    groups: dict[str, Row]
    sentence: str


def read_runs(
    inputs: dict[str, Path], nodes: dict[str, Manifest], seed: int | None
) -> list[SeedRun]:
    """Read every evaluation's results with its seed, the report's own (of `seed`, None if nothing trained) first."""
    seeds = {"eval": seed} | {
        role: int(role.removeprefix(PREFIX)) for role in inputs if role.startswith(PREFIX)
    }
    return [
        SeedRun(of_seed, role, nodes[role]["fingerprint"], read_results(inputs[role]))
        for role, of_seed in seeds.items()
    ]


def summary(runs: list[SeedRun], inputs: dict[str, Path], confidence: float) -> OverSeeds | None:
    """Return the results over all seeds. None for one seed, and without checks. `confidence`: that of the intervals."""
    first = runs[0].results
    endpoint, main, policy = first.endpoint, first.main_difference, first.policy
    if len(runs) < 2 or not endpoint:
        return None
    outcomes = [load(inputs[run.role] / "outcomes.parquet", Outcome) for run in runs]
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
    over_all = groups[endpoint]
    claim = claims.change(over_all, main)
    differences = [run.results.groups[endpoint][main] for run in runs]
    gains = [of_seed.mean for of_seed in differences]
    over = f"Over {len(runs)} seeds, each prompt's outcomes averaged,"
    if claim.note:
        sentence = f"{over} {claim.note} whether {policy} helped on {endpoint}."
    else:
        better, worse = claims.count(map(claims.difference, differences))
        delta = over_all[main]
        sentence = (
            f"{over} {policy} {claim.says('effect')} on {endpoint}: {points(delta.mean)} points "
            f"({delta.bounds()}; for these seeds only). By seed from {points(min(gains))} to "
            f"{points(max(gains))}; helped in {better}, hurt in {worse}."
        )
    if "policy-base" in first.differences and main != "policy-base":
        over_base = over_all["policy-base"].points()
        sentence += f" {first.differences['policy-base']}: {over_base}."
    if len(runs) < ENOUGH_SEEDS:
        sentence += f" Fewer than {ENOUGH_SEEDS} seeds say little about the recipe."
    return OverSeeds(groups, sentence)
