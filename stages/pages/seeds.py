"""Several seeds of the same recipe: the results of each, and of all.

There are two questions. *These seeds*: every prompt's outcomes are averaged over seeds, with an interval over other
prompts. *Other seeds*: each seed gives one figure, and Student's interval over seeds is about the recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from stages.config.blocks.evaluation import Eval
from stages.evaluation import claims
from stages.evaluation.checked import Checked
from stages.evaluation.claims import OVER_CONTROL, Claim, Word
from stages.evaluation.estimate import over_seeds
from stages.evaluation.intervals import Interval
from stages.evaluation.measures import FILE as MEASURES
from stages.evaluation.measures import Measure
from stages.evaluation.outcomes import Outcome, average_runs, rate_row
from stages.evaluation.results import Intervals, Results, Row, read_results
from stages.pages.control_name import name_control
from stages.pages.headline import ONE_SEED
from stages.pages.settings_table import learns, model_nodes
from stages.store.manifest import Manifest
from stages.store.numbers import points
from stages.store.records import Example, load, stream

ENOUGH_SEEDS = 3
PREFIX = "eval_seed_"
SHARES = ("ratio", "sum", "per_token")  # of held-out pairs
FILE = "seeds.json"  # beside the report, if it has several seeds


@dataclass(frozen=True)
class SeedRun:
    """The evaluation of one seed, None if the run trained nothing. `role`: the report's input; `measures`: what the gate
    compares."""

    seed: int | None
    role: str
    fingerprint: str
    results: Results
    measures: list[Measure] = field(default_factory=list)


@dataclass(frozen=True)
class BySeed:
    """A share or a difference of each seed, and their mean with Student's interval over seeds."""

    values: list[float]
    interval: Interval


@dataclass(frozen=True)
class OverSeeds:
    """The results of all seeds.

    Args:
        groups: rates and differences by group of prompts, each prompt's outcomes averaged; empty without checks.
        checks: each difference on the primary endpoint, by name; empty without checks.
        learnt: of held-out pairs, by measure (as in `Learnt`), then by role and difference; empty without any.
        headline: what the first screen says, or ''."""

    seeds: list[int | None]
    groups: dict[str, Row]
    checks: dict[str, BySeed]
    learnt: dict[str, dict[str, BySeed]]
    headline: str
    sentence: str


def read_runs(inputs: dict[str, Path], nodes: dict[str, Manifest]) -> list[SeedRun]:
    """Read the evaluation of every seed, the report's own first."""
    runs = list[SeedRun]()
    for role in ("eval", *(role for role in inputs if role.startswith(PREFIX))):
        results = name_control(read_results(inputs[role]))
        measures = load(inputs[role] / MEASURES, Measure)
        seed = seed_of(role, nodes, results)
        runs.append(SeedRun(seed, role, nodes[role]["fingerprint"], results, measures))
    return runs


def seed_of(role: str, nodes: dict[str, Manifest], results: Results) -> int | None:
    """Return the seed of an evaluation, None if the run trained nothing."""
    if role.startswith(PREFIX):
        return int(role.removeprefix(PREFIX))
    policy = nodes[model_nodes(nodes, results.models)["policy"]]
    return int(policy["settings"]["seed"]) if learns(policy) else None


def summary(
    runs: list[SeedRun], inputs: dict[str, Path], confidence: float, note: str = ""
) -> OverSeeds | None:
    """Return the results over all seeds. None for one seed, and without checks and held-out pairs. `confidence`: that of
    the intervals; `note`: why nothing can be said, or ''."""
    if len(runs) < 2:
        return None
    first = runs[0].results
    groups = average_groups(runs, inputs, confidence) if first.endpoint else {}
    if note:
        groups = {name: replace(row, note=note) for name, row in groups.items()}
    checks = {
        name: of_differences(runs, str(first.endpoint), name, confidence)
        for name in first.differences
        if groups
    }
    learnt = of_pairs(runs, confidence)
    if not checks and not learnt:
        return None
    clauses_by_part, sentences = dict[str, str](), list[str]()
    if checks:
        over_all = groups[str(first.endpoint)]
        sentences.append(sentence_on_checks(runs, over_all))
        clauses_by_part["checks"] = on_checks(first, checks, len(runs), over_all.note)
    if first.learnt and learnt:
        note = note or claims.note_on_pairs(first.learnt)
        clauses_by_part["learnt"] = on_pairs(first, learnt, len(runs), note)
    if len(runs) < ENOUGH_SEEDS:
        sentences.append(f"Fewer than {ENOUGH_SEEDS} seeds say little about the recipe.")
    clauses = in_order_of_verdict(clauses_by_part, first)
    return OverSeeds(
        seeds=[run.seed for run in runs],
        groups=groups,
        checks=checks,
        learnt=learnt,
        headline="".join(clauses[:1]),
        sentence=" ".join(sentences + clauses),
    )


def in_order_of_verdict(clauses_by_part: Mapping[str, str], first: Results) -> list[str]:
    """Return the clauses that say something, those on the parts of the verdict first."""
    parts = dict.fromkeys([*first.gives_verdict, *clauses_by_part])
    return [clauses_by_part[part] for part in parts if clauses_by_part.get(part)]


def sentence_by_seed(over_seeds: OverSeeds | None, seeds: int) -> str:
    """Return what is said of other seeds: the mean with Student's interval, of one seed that nothing is known of others;
    '' if the run trained nothing, or a note holds of several. `seeds`: the number of seeds that were trained."""
    if over_seeds:
        return over_seeds.headline
    return ONE_SEED if seeds == 1 else ""


def average_groups(
    runs: Sequence[SeedRun], inputs: dict[str, Path], confidence: float
) -> dict[str, Row]:
    """Return rates and differences by group of prompts, each prompt's outcomes averaged."""
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
    return {name: rate_row(table, level) for name, table in checked.groups.items()}


def of_differences(runs: Sequence[SeedRun], endpoint: str, name: str, confidence: float) -> BySeed:
    """Return a difference of pass rates by seed."""
    rows = [run.results.groups[endpoint] for run in runs]
    values = [row[name].mean for row in rows]
    step = 1 / min(row.prompts for row in rows)
    return BySeed(values, over_seeds(values, step, confidence=confidence))


def of_pairs(runs: Sequence[SeedRun], confidence: float) -> dict[str, dict[str, BySeed]]:
    """Return the shares of held-out pairs and their differences by measure and seed; empty unless all seeds have pairs.
    Pairs that repeat a training pair are left out."""
    figures = [run.results.learnt.claimed for run in runs if run.results.learnt]
    if len(figures) < len(runs):
        return {}
    step = 1 / min(each.pairs for each in figures)
    by_measure = dict[str, dict[str, BySeed]]()
    for measure in SHARES:
        of_measure: list[Intervals] = [getattr(each, measure) for each in figures]
        by_measure[measure] = {
            name: shares_by_seed(of_measure, name, step, confidence) for name in of_measure[0]
        }
    return by_measure


def shares_by_seed(
    figures: Sequence[Intervals], name: str, step: float, confidence: float
) -> BySeed:
    """Return a share of held-out pairs, or a difference of two, by seed."""
    values = [of_seed[name].mean for of_seed in figures]
    lowest = -1.0 if "-" in name else 0.0
    return BySeed(values, over_seeds(values, step, lowest, confidence))


def sentence_on_checks(runs: Sequence[SeedRun], over_all: Row) -> str:
    """Return the change of the pass rate for these seeds, each prompt's outcomes averaged."""
    first = runs[0].results
    endpoint, main, policy = str(first.endpoint), first.main_difference, first.policy
    claim = claims.change(over_all, main)
    over = f"Over {len(runs)} seeds, each prompt's outcomes averaged,"
    if claim.note:
        return f"{over} {claim.note} whether {policy} helped on {endpoint}."
    differences = [run.results.groups[endpoint][main] for run in runs]
    gains = [of_seed.mean for of_seed in differences]
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
    return sentence


def on_checks(first: Results, checks: dict[str, BySeed], seeds: int, note: str) -> str:
    """Return what other seeds would give by checks, also over the control; '' if a note holds."""
    claim = claims.over_seeds(checks[first.main_difference].interval, seeds, note)
    over_control = None
    if OVER_CONTROL in checks:
        over_control = claims.over_seeds(checks[OVER_CONTROL].interval, seeds)
    return clause_on_seeds(first, claim, "over_seeds", over_control)


def on_pairs(first: Results, learnt: dict[str, dict[str, BySeed]], seeds: int, note: str) -> str:
    """Return what other seeds would learn of the preferences, also over the control; '' if a note holds."""
    is_unmoved = first.learnt and claims.learnt_word(first.learnt.claimed) is Word.unmoved
    if is_unmoved:  # the sign of no change says nothing, in however many seeds
        return ""
    claim = claims.learnt_over_seeds(learnt["ratio"]["policy"].interval, seeds, note)
    over_control = None
    if OVER_CONTROL in learnt["sum"]:
        by_sum, by_token = (learnt[name][OVER_CONTROL].interval for name in ("sum", "per_token"))
        over_control = claims.learnt_control_over_seeds(by_sum, by_token, seeds)
    return clause_on_seeds(first, claim, "learnt_over_seeds", over_control)


def clause_on_seeds(first: Results, claim: Claim, question: str, over_control: Claim | None) -> str:
    """Return a claim over seeds with its figure as a sentence, with that over the control if there is one."""
    if claim.note:
        return ""
    says = claim.says(question, model=first.policy)
    sentence = f"{says[:1].upper()}{says[1:]}: {claim.figure}"
    if over_control:
        sentence += f"; {first.policy} over {first.control_in_words}: {over_control.with_figure('control_lamp')}"
    return f"{sentence}."
