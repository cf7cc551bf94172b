"""Read the evaluations of a store: the settings of every model, its results, and the prompts that it passed."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from stages.commands.node_settings import Nodes, lineage, lineage_settings, without_seeds
from stages.config.errors import UserError
from stages.config.extras import modules_of_extras
from stages.evaluation.coverage import coverage_of
from stages.evaluation.gated_groups import groups_by_name
from stages.evaluation.outcomes import (
    OUTSIDE,
    VIEWS,
    Outcome,
    Table,
    average_runs,
)
from stages.evaluation.results import Results, read_results
from stages.pages.control_name import name_control
from stages.store.manifest import Manifest
from stages.store.records import Example, content_id, load
from stages.store.store import Store

log = logging.getLogger(__name__)

Key = tuple[str, str]  # stage, fingerprint
NOT_COMPARED = ("base", "other")


@dataclass(eq=False)
class MeasuredModel:
    """A model in an evaluation. `role`: `sft` of the model that the policy was trained from. `fingerprint`: the
    evaluation's. `prompts`: the split, the endpoint, and which prompts these are. `settings`: of all nodes that it was
    made from (`dpo.beta`). `note`: why nothing can be said, or ''. `passed`: 0 or 1 for each prompt. `figures`: by their
    names in a ComparedSetting. `of_extras`: by table, rates by name. `coverage`: pass@k and distinct answers. `groups`: of the
    policy, the share of held-out pairs in order by group of `eval.by`, and `margins` in nats a token."""

    role: str
    title: str
    fingerprint: str
    prompts: tuple[str, str, str]
    tasks: list[str]
    tasks_drawn: bool
    note: str
    settings: dict[str, str]
    passed: NDArray[Any]
    figures: dict[str, float]
    of_extras: dict[str, dict[str, float]]
    groups: dict[str, float]
    margins: dict[str, float]
    coverage: dict[str, float] = field(default_factory=dict)


def measured_models(
    store: Store, oldest_first: Nodes, chosen: set[str] | None
) -> list[MeasuredModel]:
    """Return all models but `base` and `other` of every evaluation in `chosen`, fingerprints of nodes; None: of every
    one in the store. Of equal models the last counts. What cannot be compared is left out, with its reason in the log."""
    examples_of = cache(partial(read_examples, store, oldest_first))  # evaluations share their data
    latest = dict[tuple[Any, ...], MeasuredModel]()
    for (stage, fingerprint), (folder, manifest) in oldest_first.items():
        if stage != "eval" or (chosen is not None and fingerprint not in chosen):
            continue
        try:
            results, table = read_evaluation(store, folder, manifest, examples_of)
        except UserError as error:
            log.warning("warning: eval %s is left out: %s", fingerprint, error)
            continue
        for name in results.models:
            if name not in NOT_COMPARED:
                row = read_model(oldest_first, manifest, name, results, table)
                # a model may be the policy here and an arm there
                answers = input_key(manifest, f"answer_{name}")
                latest[row.prompts, row.role == "sft", answers] = row
    return list(latest.values())


def name_of_sft(manifest: Manifest) -> str:
    """Return the name that an evaluation has for SFT: with align=none, it is the policy."""
    return "policy" if manifest["inputs"]["policy"]["stage"] == "sft" else "sft"


def read_evaluation(
    store: Store,
    folder: Path,
    manifest: Manifest,
    examples_of: Callable[[Key], dict[str, Example]],
) -> tuple[Results, Table]:
    """Return the results of an evaluation, and all outcomes on the prompts of its endpoint. Raise UserError if its files
    or prompts are damaged or deleted, or if it has no pass rates of SFT."""
    store.verify(folder, weights=False)
    results = name_control(read_results(folder))
    endpoint = results.endpoint
    if not endpoint or name_of_sft(manifest) not in results.models:
        raise UserError(f"it has no pass rates of SFT: {results.verdict}")
    examples = dict[str, Example]()
    for role in ("data", "outside"):
        if role in manifest["inputs"]:
            examples |= examples_of(input_key(manifest, role))
    outcomes = sorted(load(folder / "outcomes.parquet", Outcome), key=attrgetter("prompt_id"))
    if any(outcome.prompt_id not in examples for outcome in outcomes):
        raise UserError("its prompts are not in its data")
    table = average_runs([outcomes], examples)
    if endpoint in VIEWS:
        return results, table.group(*VIEWS[endpoint])
    return results, table.by("task")[endpoint.removeprefix(OUTSIDE)]  # a set of the user's


def read_examples(store: Store, nodes: Nodes, node: Key) -> dict[str, Example]:
    """Return the prompts of a node by id. Raise UserError if they are damaged or deleted."""
    if node not in nodes:
        raise UserError(f"its prompts, {' '.join(node)}, are deleted")
    folder, _ = nodes[node]
    store.verify(folder, weights=False)
    return {example.id: example for example in load(folder / "examples.parquet", Example)}


def read_model(
    nodes: Nodes, manifest: Manifest, name: str, results: Results, table: Table
) -> MeasuredModel:
    """Return a model of an evaluation with its figures."""
    answers = input_key(manifest, f"answer_{name}")
    ancestors = lineage(nodes, answers, input_key(manifest, name))
    checks = [(e.id, *map(vars, e.checks)) for e in table.prompts]
    prompts = content_id(results.shown_on, checks)
    role = "sft"
    kl = 0.0
    if name != name_of_sft(manifest):
        role = name
        kl = max(kl, results.kl[name].per_token)  # an estimate may be below 0
    of_extras = dict[str, dict[str, float]]()
    for extra in modules_of_extras("compared"):
        of_extras[extra.TITLE] = extra.rates(results, name)
    groups = groups_by_name(results.learnt) if name == "policy" else {}
    return MeasuredModel(
        role=role,
        title=results.models[name],
        fingerprint=manifest["fingerprint"],
        prompts=(split_of(nodes, manifest), str(results.endpoint), prompts),
        tasks=[e.task for e in table.prompts],
        tasks_drawn=table.tasks_drawn,
        note=results.primary.note if results.primary else "",
        settings=without_seeds(lineage_settings(ancestors)),
        passed=table.passed[:, table.roles.index(name)],
        figures={
            "kl": kl,
            "mean_tokens": results.behaviour.mean_tokens[name],
            "stop_rate": results.behaviour.stop_rate[name],
        },
        of_extras=of_extras,
        coverage=coverage_figures(results, name),
        groups={title: group.share.mean for title, group in groups.items()},
        margins={title: group.margin.mean for title, group in groups.items()},
    )


def coverage_figures(results: Results, role: str) -> dict[str, float]:
    """Return a model's rates in several tries, and its distinct answers, on the prompts of the endpoint; {} if nothing was
    drawn."""
    coverage = coverage_of(results)
    if coverage is None or role not in results.models:
        return {}
    figures = {f"pass@{k}": rates[role].mean for k, rates in coverage.passes.items()}
    if str(results.endpoint) in coverage.distinct:
        distinct = coverage.distinct[str(results.endpoint)]
        figures[f"distinct of {coverage.draws}"] = distinct.by_role[role] / coverage.draws
    return figures


def split_of(nodes: Nodes, manifest: Manifest) -> str:
    """Return the split of an evaluation's prompts, by its answers; "held-out" if they are deleted."""
    for role in manifest["inputs"]:
        answers = nodes.get(input_key(manifest, role))
        if role.startswith("answer_") and answers:
            return str(answers[1]["settings"]["split"])
    return "held-out"  # all answers are deleted


def input_key(manifest: Manifest, role: str) -> Key:
    entry = manifest["inputs"][role]
    return entry["stage"], entry["fingerprint"]
