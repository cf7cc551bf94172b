"""`stage=plan`: show every node with its state, its changes since the nearest finished node, and its cost.

Nothing runs. Memory is the peak that is allocated on a GPU, else the resident peak. It is measured if a finished node
has the same settings for memory, else estimated. Tokens and time are scaled from finished nodes of the same stage; if
none ran on this processor, they are `not measured yet`."""

import logging
import math
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.table import Table

from stages.commands.node_settings import named_settings
from stages.commands.planning import calculated, cost, expected_calls
from stages.commands.planning.calculated import CalculatedPlan
from stages.commands.planning.cost import RunHistory
from stages.commands.planning.expected_calls import ExpectedCalls
from stages.commands.planning.peak import uses_gpu
from stages.commands.result import Result, print_parts
from stages.config.blocks.data import OneSource
from stages.config.blocks.evaluation import Versus
from stages.config.blocks.labels import PreferenceFile
from stages.config.blocks.training import Training
from stages.config.errors import visible
from stages.config.installation import ROOT, checkout_project
from stages.config.schema import Config
from stages.hardware import machine
from stages.preflight.evaluation_settings import EVALUATING, untested_message
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.sealed_json import OUTPUTS
from stages.store.store import Store

log = logging.getLogger(__name__)

UNMEASURED = "not measured yet"


@dataclass
class PlannedNode:
    """A node with its expected cost: memory, at its peak, and disk in bytes. `processor`: whose memory, GPU or RAM."""

    name: str
    stage: str
    fingerprint: str
    state: str
    changes: list[str]
    tokens: int | None
    memory: float
    processor: str
    disk: float
    seconds: float


@dataclass
class PlannedCalls:
    """The calls that a node makes to an endpoint. `output_tokens` and `money` are the most that it can use."""

    node: str
    key: str
    model: str
    calls: float
    input_tokens: float
    output_tokens: float
    money: float | None


@dataclass
class PlanResult(Result):
    """`sentences`: what the figures of all nodes say together, first the time. `warnings`: on rows that are too long."""

    nodes: list[PlannedNode]
    calls: list[PlannedCalls]
    sentences: list[str]
    warnings: list[str] = field(default_factory=list)

    def show(self) -> None:
        tables = [nodes_table(self.nodes), *([calls_table(self.calls)] if self.calls else [])]
        print_parts(*tables, *self.sentences)
        for sentence in self.warnings:
            log.warning("warning: %s", sentence)


def run(
    cfg: Config, store: Store, nodes: dict[str, Node], *_: object
) -> PlanResult | CalculatedPlan:
    """Return the plan for this machine, or for the GPUs that `plan.gpu` names."""
    planned: PlanResult | CalculatedPlan = (
        calculated.calculate(cfg, nodes, store)
        if cfg.plan.gpu
        else plan_nodes(nodes, store, untested_message(cfg))
    )
    planned.warnings = warnings_on_lengths(nodes, store)
    return planned


def warnings_on_lengths(nodes: dict[str, Node], store: Store) -> list[str]:
    """Return the sentences on rows that are too long. Only files of the user's are worth the imports."""
    if not any(isinstance(node.config, OneSource | PreferenceFile) for node in nodes.values()):
        return []
    from stages.preflight.row_lengths import long_rows

    trainings = [node for node in nodes.values() if isinstance(node.config, Training)]
    errors, warnings = long_rows(trainings, nodes, store)
    return errors + warnings


def plan_nodes(nodes: dict[str, Node], store: Store, untested: str = "") -> PlanResult:
    """Return the plan of every node, in build order. The default store also counts for this machine's speed.

    `untested`: why this run cannot be evaluated, so that evaluation is not planned; '' if it can."""
    default_store = Store(
        Path(os.environ.get(OUTPUTS) or (ROOT / "outputs" if checkout_project() else "outputs"))
    )
    history = RunHistory(
        store, *([default_store] if default_store.root.resolve() != store.root.resolve() else [])
    )
    rows, calls_rows = list[PlannedNode](), list[PlannedCalls]()
    seconds = dict[str, float]()
    halvable = 0.0  # bytes of models in float32
    counted = set[str]()  # seeds may share a node
    planned = {
        name: node for name, node in nodes.items() if not (untested and node.stage in EVALUATING)
    }
    for name, node in planned.items():
        state = store.state(node)
        costs = cost.expected_cost(node, nodes, store, history)
        calls = expected_calls.endpoint_calls(node, store, history)
        if calls or expected_calls.waits_for_people(node):  # the time depends on servers or people
            costs = replace(costs, seconds=math.nan)
        if state != "cached" and node.fingerprint not in counted:
            counted.add(node.fingerprint)
            seconds[name] = costs.seconds
            halvable += costs.disk if cost.publishes_float32(node) else 0
            calls_rows += [planned_calls(name, each) for each in calls]
        rows.append(
            PlannedNode(
                name=name,
                stage=node.stage,
                fingerprint=node.fingerprint,
                state=state,
                changes=changes(node, state, store),
                tokens=costs.tokens,
                memory=costs.memory,
                processor="GPU" if uses_gpu(node) else "RAM",
                disk=costs.disk,
                seconds=0.0 if state == "cached" else costs.seconds,
            )
        )
    sentences = [time_summary(seconds)]
    for name, node in planned.items():
        if isinstance(node.config, Versus) and not node.config.constant:
            sentences.append(comparison_sentence(name, node, store, history))
    if halvable > 2**33:
        sentences.append(
            f"Models to publish take {halvable / 2**30:.0f} GiB; model.dtype=bfloat16 halves that."
        )
    if gpus := machine.visible_gpus():
        names = (f"{gpu.name} ({gpu.free_memory / 2**30:.1f} GiB free)" for gpu in gpus)
        count = f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}"
        sentences.append(f"CUDA shows {count}: {', '.join(names)}.")
    if untested:
        sentences.append(f"Not planned: {', '.join(EVALUATING)}. {untested}")
    return PlanResult(rows, calls_rows, sentences)


def planned_calls(node: str, expected: ExpectedCalls) -> PlannedCalls:
    return PlannedCalls(
        node=node,
        key=expected.key,
        model=str(expected.endpoint.model),
        calls=expected.calls,
        input_tokens=expected.input,
        output_tokens=expected.output,
        money=expected.money,
    )


def nodes_table(nodes: list[PlannedNode]) -> Table:
    """Return the table of nodes with their changes and costs."""
    table = Table(
        "node",
        "fingerprint",
        "state",
        "what changed",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for title in ("tokens", "memory", "disk", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    for node in nodes:
        gib = node.memory / 2**30
        time = UNMEASURED if math.isnan(node.seconds) else f"{node.seconds:.0f} s"
        table.add_row(
            node.name.replace("_", " "),
            node.fingerprint,
            node.state,
            visible("; ".join(node.changes)),
            f"{node.tokens:,}" if node.tokens else "",
            "?" if math.isnan(gib) else f"{gib:.1f} GiB {node.processor}",
            f"{node.disk / 2**30:.1f} GiB" if node.disk > 2**26 else "",
            "" if node.state == "cached" else time,
        )
    return table


def time_summary(seconds: dict[str, float]) -> str:
    """Return the sentence on the total time, from the seconds of nodes: nan if not measured."""
    unmeasured = [name for name, each in seconds.items() if math.isnan(each)]
    measured = [each for each in seconds.values() if not math.isnan(each)]
    least = "at least " if unmeasured else ""
    total = f"{least}{sum(measured) / 60:.1f} min, measured on nodes of the same stage on this processor."
    parts = [total] if measured or not unmeasured else []
    missing = [f"{UNMEASURED} ({len(unmeasured)}): {', '.join(unmeasured)}."] if unmeasured else []
    return f"To build: {' '.join(parts + missing)}"


def comparison_sentence(name: str, node: Node, store: Store, history: RunHistory) -> str:
    """Return the sentence on the smallest difference that a comparison can detect with its number of prompts."""
    from stages.evaluation.win_rates import detectable  # imported here, as it loads numpy

    prompts, title = cost.expected_pool_sizes(node, store, history).rows / 2, name.replace("_", " ")
    if not prompts:
        return f"{title}: the number of compared prompts is not known yet."
    points = 100 * detectable(int(prompts))
    return f"{title}: {prompts:,.0f} prompts detect a win rate {points:.0f} points from 50% with 80% probability."


def calls_table(planned: list[PlannedCalls]) -> Table:
    """Return the table of expected calls to endpoints, with their tokens and costs."""
    table = Table("asks", "endpoint", "model", box=None, header_style="bold", pad_edge=False)
    for title in ("calls", "tokens in", "out, at most", "money, at most"):
        table.add_column(title, justify="right", no_wrap=True)
    for calls in planned:
        amounts = [
            f"{n:,.0f}" if math.isfinite(n) else "?"
            for n in (calls.calls, calls.input_tokens, calls.output_tokens)
        ]
        has_price = calls.money is not None and math.isfinite(calls.money)
        money = f"{calls.money:,.2f}" if has_price else "?"
        name = calls.node.replace("_", " ")
        table.add_row(name, calls.key, visible(calls.model), *amounts, money)
    return table


def changes(node: Node, state: str, store: Store) -> list[str]:
    """Return the settings and inputs that differ from the most similar published node of the stage."""
    notes = [f"{key}={value} changes the results here" for key, value in node.fixed.items()]
    share = (store.find(node) or {"metrics": {}})["metrics"].get("surviving_update")
    notes += [] if share is None else [f"{share:.0%} of the update survives rounding"]
    if state != "cached":
        earlier = (node_differences(node, manifest) for _, manifest in store.manifests(node.stage))
        nearest = min(earlier, key=len, default=["no earlier node to compare with"])
        notes += nearest or ["rebuilt because of rebuild=, a rebuilt input or a damaged file"]
    return notes


def node_differences(node: Node, manifest: Manifest) -> list[str]:
    """Return differences such as `learning_rate 5e-05 -> 0.0001`, `path pairs.jsonl: its content` and `input sft`."""
    current = {
        key: (value, name)
        for key, value, name in named_settings(node.settings, asdict(node.config))
    }
    previous = {
        key: (value, name)
        for key, value, name in named_settings(manifest["settings"], manifest["config"])
    }
    differences = (
        [f"version {manifest['version']} -> {node.version}"]
        if manifest["version"] != node.version
        else []
    )
    for key in sorted(current | previous):
        (value, name), (old_value, old_name) = (
            current.get(key, (None, "–")),
            previous.get(key, (None, "–")),
        )
        if value != old_value:
            differences.append(
                f"{key} {name}: its content" if name == old_name else f"{key} {old_name} -> {name}"
            )
    before = {role: entry["fingerprint"] for role, entry in manifest["inputs"].items()}
    after = {role: node_input.fingerprint for role, node_input in node.inputs.items()}
    return differences + [
        f"input {role}" for role in sorted(before | after) if before.get(role) != after.get(role)
    ]
