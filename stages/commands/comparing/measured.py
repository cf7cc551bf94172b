"""Read the evaluations of a store: the settings of every model, its results, and the prompts that it passed."""

import logging
import math
from dataclasses import dataclass
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from stages.commands.node_settings import Nodes, lineage, lineage_settings, without_seeds
from stages.config.blocks.training import OBJECTIVES
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
from stages.store.sealed_json import Damaged, load_json, require_keys, warn_once
from stages.store.store import Store

log = logging.getLogger(__name__)

Key = tuple[str, str]  # stage, fingerprint
FORWARD = 2  # operations per parameter and token
BACKWARD = 4
ADAPTER_BACKWARD = 2
ELSEWHERE = "openai"  # the sampler whose model runs on a server


@dataclass
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
    """Return all models but the base of every intact evaluation in `chosen`, fingerprints of nodes; None: of every one
    in the store. Of equal models the last counts."""
    examples_of = cache(partial(read_examples, store, nodes))
    latest_rows = dict[tuple[Any, ...], Row]()
    for key, (folder, manifest) in nodes.items():  # oldest first
        is_chosen = chosen is None or key[1] in chosen
        if key[0] != "eval" or not is_chosen or not is_intact(store, nodes, key):
            continue
        results = load_json(folder / "results.json", require_keys("models", "primary"))
        start = "policy" if manifest["inputs"]["policy"]["stage"] == "sft" else "sft"
        if not results["primary"] or start not in results["models"]:
            verdict = results["verdict"]
            log.info("eval %s is left out, as it has no pass rates of SFT: %s", key[1], verdict)
            continue
        examples = dict[str, Example]()
        for name in ("data", "outside"):
            if name in manifest["inputs"]:
                examples |= examples_of(input_key(manifest, name))
        table = compared_table(folder, examples, results["endpoint"])
        if table is None:
            log.info("eval %s is left out, as its prompts are deleted or damaged.", key[1])
            continue
        for name in results["models"]:
            if name in ("base", "other"):
                continue
            row = read_row(nodes, key, name, name == start, results, table)
            # a model may be the policy here and an arm there
            answers = input_key(manifest, f"answer_{name}")
            latest_rows[row.prompts, row.role == "sft", answers] = row
    return list(latest_rows.values())


def compared_table(folder: Path, examples: dict[str, Example], endpoint: str) -> Table | None:
    """Return an evaluation's outcomes on the prompts of its endpoint; None if the examples lack a prompt."""
    outcomes = sorted(load(folder / "outcomes.parquet", Outcome), key=attrgetter("prompt_id"))
    if any(outcome.prompt_id not in examples for outcome in outcomes):
        return None
    table = average_runs([outcomes], examples)
    if endpoint in VIEWS:
        return table.group(*VIEWS[endpoint])
    return table.by("task")[endpoint.removeprefix(OUTSIDE)]  # a labelled set of the user's


def is_intact(store: Store, nodes: Nodes, key: Key) -> bool:
    """Return whether a node is in the store with intact files, and warn if they are not."""
    if key not in nodes:
        return False
    try:
        store.verify(nodes[key][0], weights=False)
    except Damaged as error:
        warn_once(f"{nodes[key][0]} is left out: {error}")
        return False
    return True


def read_row(
    nodes: Nodes, key: Key, name: str, is_start: bool, results: dict[str, Any], table: Table
) -> Row:
    """Return a model of an evaluation with its figures. `is_start`: the policy was trained from it."""
    manifest = nodes[key][1]
    model = input_key(manifest, name)
    ancestors = lineage(nodes, input_key(manifest, f"answer_{name}"), model)
    answers = [m for m in lineage(nodes, key) if m["stage"] == "answer"]
    split = answers[0]["settings"]["split"] if answers else "held-out"  # they may be deleted
    checks = [(e.id, *map(vars, e.checks)) for e in table.prompts]
    kl = 0.0 if is_start else results["kl"][name]["per_token"]
    benchmarks = dict[str, float]()
    for row in results.get("benchmarks", []):
        benchmarks[f"{row['task']} {row['metric']} ({row['prompts']})"] = row[name]["mean"]
    return Row(
        role="sft" if is_start else name,
        title=str(results["models"][name]),
        fingerprint=key[1],
        command=manifest["command"],
        prompts=(split, results["endpoint"], content_id(results["shown_on"], checks)),
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


def retained_claims(results: dict[str, Any]) -> str:
    """Return how many claims of retention hold for the policy: `2 of 3`, or `–` without any."""
    retention = results.get("retention")
    if not retention:
        return "–"
    holds = [claim["holds"] for claim in retention.get("claims", [])]
    return f"{sum(holds)} of {len(holds)}"


def input_key(manifest: Manifest, role: str) -> Key:
    entry = manifest["inputs"][role]
    return entry["stage"], entry["fingerprint"]


def read_examples(store: Store, nodes: Nodes, key: Key) -> dict[str, Example]:
    """Return the prompts of a node by id; none if the node is missing, damaged or from another version."""
    if not is_intact(store, nodes, key):
        return {}
    try:
        examples = load(nodes[key][0] / "examples.parquet", Example)
    except Damaged as error:
        log.warning("warning: %s", error)
        return {}
    return {example.id: example for example in examples}


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
