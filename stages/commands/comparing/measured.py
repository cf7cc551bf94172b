"""Read the evaluations of a store: the settings of every model, its results, and the prompts that it passed."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from stages.commands.node_settings import Nodes, lineage, lineage_settings, without_seeds
from stages.config.blocks.training import OBJECTIVES
from stages.config.errors import UserError
from stages.evaluation.outcomes import (
    OUTSIDE,
    VIEWS,
    Outcome,
    Table,
    average_runs,
    speaks_for_other_tasks,
)
from stages.store.manifest import Manifest
from stages.store.records import Example, content_id, load
from stages.store.sealed_json import load_json, require_keys
from stages.store.store import Store

log = logging.getLogger(__name__)

Key = tuple[str, str]  # stage, fingerprint
FORWARD = 2  # operations per parameter and token
BACKWARD = 4
ADAPTER_BACKWARD = 2
ELSEWHERE = "openai"  # the sampler whose model runs on a server


@dataclass(eq=False)
class Row:
    """A model in an evaluation. `role`: `sft` of the model that the policy was trained from. `fingerprint`: the
    evaluation's. `prompts`: the split, the endpoint, and which prompts these are. `settings`: of all nodes that it was
    made from (`dpo.beta`). `passed`: 0 or 1 for each prompt. `figures`: by their names in a ComparedSetting. `benchmarks`:
    rates by name. `retained`: the claims of retention that hold (`2 of 3`)."""

    role: str
    title: str
    fingerprint: str
    command: str
    prompts: tuple[str, str, str]
    tasks: list[str]
    tasks_drawn: bool
    caveat: str
    settings: dict[str, str]
    passed: NDArray[Any]
    figures: dict[str, float]
    benchmarks: dict[str, float]
    retained: str


def measured_rows(store: Store, nodes: Nodes, chosen: set[str] | None) -> list[Row]:
    """Return all models but the base of every evaluation in `chosen`, fingerprints of nodes; None: of every one in the
    store. Of equal models the last counts. What cannot be compared is left out, with its reason in the log."""
    examples_of = cache(partial(read_examples, store, nodes))  # evaluations share their data
    latest = dict[tuple[Any, ...], Row]()
    for (stage, fingerprint), (folder, manifest) in nodes.items():  # oldest first
        if stage != "eval" or (chosen is not None and fingerprint not in chosen):
            continue
        try:
            results, table = read_evaluation(store, folder, manifest, examples_of)
        except UserError as error:
            log.warning("warning: eval %s is left out: %s", fingerprint, error)
            continue
        for name in results["models"]:
            if name not in ("base", "other"):
                row = read_row(nodes, manifest, name, results, table)
                # a model may be the policy here and an arm there
                answers = input_key(manifest, f"answer_{name}")
                latest[row.prompts, row.role == "sft", answers] = row
    return list(latest.values())


def start_of(manifest: Manifest) -> str:
    """Return the name of the model that an evaluation's others start from: with align=none, SFT is the policy."""
    return "policy" if manifest["inputs"]["policy"]["stage"] == "sft" else "sft"


def read_evaluation(
    store: Store,
    folder: Path,
    manifest: Manifest,
    examples_of: Callable[[Key], dict[str, Example]],
) -> tuple[dict[str, Any], Table]:
    """Return the results of an evaluation, and all outcomes on the prompts of its endpoint. Raise UserError if its files
    or prompts are damaged or deleted, or if it has no pass rates of SFT."""
    store.verify(folder, weights=False)
    results = load_json(folder / "results.json", require_keys("models", "primary"))
    if not results["primary"] or start_of(manifest) not in results["models"]:
        raise UserError(f"it has no pass rates of SFT: {results['verdict']}")
    examples = dict[str, Example]()
    for role in ("data", "outside"):
        if role in manifest["inputs"]:
            examples |= examples_of(input_key(manifest, role))
    outcomes = sorted(load(folder / "outcomes.parquet", Outcome), key=attrgetter("prompt_id"))
    if any(outcome.prompt_id not in examples for outcome in outcomes):
        raise UserError("its prompts are not in its data")
    table, endpoint = average_runs([outcomes], examples), results["endpoint"]
    if endpoint in VIEWS:
        return results, table.group(*VIEWS[endpoint])
    return results, table.by("task")[endpoint.removeprefix(OUTSIDE)]  # a set of the user's


def read_examples(store: Store, nodes: Nodes, key: Key) -> dict[str, Example]:
    """Return the prompts of a node by id. Raise UserError if they are damaged, deleted or of another version."""
    if key not in nodes:
        raise UserError(f"its prompts, {' '.join(key)}, are deleted")
    folder, _ = nodes[key]
    store.verify(folder, weights=False)
    return {example.id: example for example in load(folder / "examples.parquet", Example)}


def read_row(
    nodes: Nodes, manifest: Manifest, name: str, results: dict[str, Any], table: Table
) -> Row:
    """Return a model of an evaluation with its figures."""
    is_start = name == start_of(manifest)
    model = input_key(manifest, name)
    ancestors = lineage(nodes, input_key(manifest, f"answer_{name}"), model)
    checks = [(e.id, *map(vars, e.checks)) for e in table.prompts]
    prompts = content_id(results["shown_on"], checks)
    kl = 0.0 if is_start else results["kl"][name]["per_token"]
    benchmarks = dict[str, float]()
    for row in results.get("benchmarks", []):
        benchmarks[f"{row['task']} {row['metric']} ({row['prompts']})"] = row[name]["mean"]
    return Row(
        role="sft" if is_start else name,
        title=str(results["models"][name]),
        fingerprint=manifest["fingerprint"],
        command=manifest["command"],
        prompts=(split_of(nodes, manifest), results["endpoint"], prompts),
        tasks=[e.task for e in table.prompts],
        tasks_drawn=speaks_for_other_tasks(table.prompts),
        caveat=results["primary"].get("note", ""),
        settings=without_seeds(lineage_settings(ancestors)),
        passed=table.passed[:, table.roles.index(name)],
        figures={
            "kl": max(0.0, kl),  # an estimate may be below 0
            "mean_tokens": results["mean_tokens"][name],
            "stop_rate": results["stop_rate"][name],
            "seconds": sum(m["wall_seconds"] for m in ancestors),
            "flops": training_flops(lineage(nodes, model)),
        },
        benchmarks=benchmarks,
        retained=retained_claims(results) if name == "policy" else "–",
    )


def split_of(nodes: Nodes, manifest: Manifest) -> str:
    """Return the split of an evaluation's prompts."""
    for role in manifest["inputs"]:
        answers = nodes.get(input_key(manifest, role))  # they may be deleted
        if role.startswith("answer_") and answers:
            return str(answers[1]["settings"]["split"])
    return "held-out"


def input_key(manifest: Manifest, role: str) -> Key:
    entry = manifest["inputs"][role]
    return entry["stage"], entry["fingerprint"]


def retained_claims(results: dict[str, Any]) -> str:
    """Return how many claims of retention hold for the policy: `2 of 3`, or `–` without any."""
    retention = results.get("retention")
    if not retention:
        return "–"
    holds = [claim["holds"] for claim in retention.get("claims", [])]
    return f"{sum(holds)} of {len(holds)}"


def training_flops(manifests: list[Manifest]) -> float:
    """Return the operations of the trainings, samples and stored log-probs among the nodes that a model came from.

    A token costs 2 operations per parameter forward and 4 backward (Kaplan et al. 2020, arXiv:2001.08361, section
    2.1), or 2 backward where only adapters are trained. GRPO also samples the completions that it trains on. Attention
    over earlier tokens, labels by models, and endpoints are not counted. The result is nan if a base is deleted."""
    parameters = dict[str, float]()
    for m in manifests:
        if m["stage"] == "base":
            parameters[m["fingerprint"]] = float(m["metrics"]["parameters"])
    total = 0.0
    for m in manifests:
        per_token = operations(m)
        if per_token:
            tokens = m["metrics"]["tokens"] + m["metrics"].get("prompt_tokens", 0)
            total += per_token * tokens * parameters.get(m["roots"].get("base", ""), math.nan)
    return total


def operations(m: Manifest) -> int:
    """Return the operations per parameter and token of a node; 0 if it runs no model here."""
    stage = m["stage"]
    if "tokens" not in m["metrics"] or m["settings"].get("sampler") == ELSEWHERE:
        return 0
    if stage in ("sample", "reference"):
        return FORWARD
    if stage not in OBJECTIVES:
        return 0
    trains_all = m["settings"].get("adapter", "none") == "none"
    backward = BACKWARD if trains_all else ADAPTER_BACKWARD
    if stage == "kto":  # half of its tokens are of mismatched completions, which are only read
        backward //= 2
    if stage == "grpo":
        return 2 * FORWARD + backward
    return FORWARD + backward
