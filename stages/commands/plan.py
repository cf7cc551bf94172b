"""`stage=plan`: show every node with its state, what changed since the nearest finished node, and what it costs.

Nothing runs. Memory is the peak that is allocated on a GPU, else the resident peak: measured of a finished node, else
calculated. Time is what the nearest finished node took."""

import logging
import math
from dataclasses import dataclass, field
from itertools import chain

from rich.table import Table

from stages.commands.planning import calculated
from stages.commands.planning.calculated import CalculatedPlan
from stages.commands.planning.earlier import nearest_earlier
from stages.commands.planning.expected_calls import PlannedCalls, planned_calls, waits_for_people
from stages.commands.planning.peak import expected_parts, model_shape, uses_gpu
from stages.commands.planning.rows import expected_rows
from stages.commands.result import Result, new_table, print_parts
from stages.config.blocks.data import OneSource
from stages.config.blocks.evaluation import Versus
from stages.config.blocks.labels import PreferenceFile
from stages.config.blocks.training import OBJECTIVES, Training
from stages.config.errors import visible
from stages.config.schema import Config
from stages.hardware import machine
from stages.preflight.evaluation_settings import EVALUATING, untested_message
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.store import Store

log = logging.getLogger(__name__)

PUBLISHES_WEIGHTS = ("base", *OBJECTIVES)
UNMEASURED = "not measured yet"


@dataclass
class PlannedNode:
    """A node with its expected cost: memory, at its peak, and disk in bytes. `processor`: whose memory, GPU or RAM.
    Numbers are nan if they are not known."""

    name: str
    stage: str
    fingerprint: str
    state: str
    changes: list[str]
    memory: float
    processor: str
    disk: float
    seconds: float


@dataclass
class PlanResult(Result):
    """`sentences`: what the figures of all nodes say together, first the time. `warnings`: on rows that are too long."""

    nodes: list[PlannedNode]
    calls: list[PlannedCalls]
    sentences: list[str]
    warnings: list[str] = field(default_factory=list)

    def show(self) -> None:
        print_parts(nodes_table(self.nodes))
        if self.calls:
            print_parts(calls_table(self.calls))
        print_parts(*self.sentences)
        for sentence in self.warnings:
            log.warning("warning: %s", sentence)


def run(
    cfg: Config, store: Store, nodes: dict[str, Node], *_: object
) -> PlanResult | CalculatedPlan:
    """Return the plan for this machine, or for the GPUs that `plan.gpu` names."""
    planned: PlanResult | CalculatedPlan
    if cfg.plan.gpu:
        planned = calculated.calculate(cfg, nodes, store)
    else:
        planned = plan_nodes(nodes, store, untested_message(cfg))
    planned.warnings = warnings_on_lengths(nodes, store)
    return planned


def warnings_on_lengths(nodes: dict[str, Node], store: Store) -> list[str]:
    """Return the sentences on rows that are too long. Only files of the user's are worth the imports."""
    if not any(isinstance(node.config, OneSource | PreferenceFile) for node in nodes.values()):
        return []
    from stages.preflight.row_lengths import long_rows

    trainings = [node for node in nodes.values() if isinstance(node.config, Training)]
    return long_rows(trainings, nodes, store)


def plan_nodes(nodes: dict[str, Node], store: Store, untested: str = "") -> PlanResult:
    """Return the plan of every node, in build order. `untested`: why this run cannot be evaluated, so that evaluation
    is not planned; '' if it can."""
    planned = list[PlannedNode]()
    calls = dict[str, list[PlannedCalls]]()  # by fingerprint: seeds may share a node
    notes = list[str]()
    for name, node in nodes.items():
        if untested and node.stage in EVALUATING:
            continue
        planned.append(plan_node(name, node, nodes, store))
        calls[node.fingerprint] = planned_calls(name, node, store)
        if calls[node.fingerprint] or waits_for_people(node):
            planned[-1].seconds = math.nan  # it depends on servers or people
        if isinstance(node.config, Versus) and not node.config.constant:
            notes.append(comparison_sentence(name, node, store))
    gpus = machine.visible_gpus()
    if gpus:
        free = [f"{gpu.name} ({gpu.free_memory / 2**30:.1f} GiB free)" for gpu in gpus]
        notes.append(f"GPUs that CUDA shows: {', '.join(free)}.")
    if untested:
        notes.append(f"Not planned: {', '.join(EVALUATING)}. {untested}")
    return PlanResult(planned, [*chain(*calls.values())], [time_summary(planned), *notes])


def plan_node(name: str, node: Node, nodes: dict[str, Node], store: Store) -> PlannedNode:
    """Return a node with its costs: measured if it is finished, else calculated from the shape of its model."""
    planned = PlannedNode(
        name=name,
        stage=node.stage,
        fingerprint=node.fingerprint,
        state=store.state(node),
        changes=[f"{key}={value} changes the results here" for key, value in node.fixed.items()],
        memory=math.nan,
        processor="GPU" if uses_gpu(node) else "RAM",
        disk=0.0,
        seconds=0.0,
    )
    manifest = store.find(node)
    if manifest:
        add_measured(planned, manifest)
    else:
        add_calculated(planned, node, nodes, store)
    if planned.state != "cached":
        add_earlier(planned, node, store)
    return planned


def add_measured(planned: PlannedNode, manifest: Manifest) -> None:
    """Add what a finished node took."""
    planned.memory = float(manifest["peak_gpu_memory"] or manifest["peak_memory"])
    planned.disk = float(sum(entry["bytes"] for entry in manifest["files"].values()))
    survived = manifest["metrics"].get("surviving_update")
    if survived is not None:
        planned.changes.append(f"{survived:.0%} of the update survives rounding")


def add_calculated(planned: PlannedNode, node: Node, nodes: dict[str, Node], store: Store) -> None:
    """Add what follows from the shape of a node's model. A model is published in the float32 in which it is trained, or
    in the 16 bits of `model.dtype`."""
    shape = model_shape(node, nodes, store)
    if shape is None:
        return
    planned.memory = sum(expected_parts(node, nodes, shape))
    if node.stage in PUBLISHES_WEIGHTS:
        is_rounded = any(each.stage == "base" and each.config.dtype for each in node.lineage)
        planned.disk = (2.0 if is_rounded else 4.0) * shape.parameters


def add_earlier(planned: PlannedNode, node: Node, store: Store) -> None:
    """Add what changed since the nearest finished node, and the time that this took."""
    earlier = nearest_earlier(node, store)
    if earlier is None:
        planned.seconds = math.nan
        planned.changes.append("no earlier node to compare with")
        return
    planned.seconds = earlier.seconds
    same = ["rebuilt because of rebuild=, a rebuilt input or a damaged file"]
    planned.changes += earlier.differences or same


def nodes_table(nodes: list[PlannedNode]) -> Table:
    """Return the table of nodes with their changes and costs."""
    columns = ("node", "fingerprint", "state", "what changed")
    table = new_table(*columns, numbers=("memory", "disk", "time"))
    for node in nodes:
        memory = number(node.memory / 2**30, " GiB", 1)
        time = UNMEASURED if math.isnan(node.seconds) else f"{node.seconds:.0f} s"
        table.add_row(
            node.name.replace("_", " "),
            node.fingerprint,
            node.state,
            visible("; ".join(node.changes)),
            f"{memory} {node.processor}",
            number(node.disk / 2**30, " GiB", 1) if node.disk > 2**26 else "",
            "" if node.state == "cached" else time,
        )
    return table


def time_summary(planned: list[PlannedNode]) -> str:
    """Return the sentence on the time of the nodes that are still to be built."""
    to_build = {node.fingerprint: node for node in planned if node.state != "cached"}
    unmeasured = [node.name for node in to_build.values() if math.isnan(node.seconds)]
    minutes = sum(node.seconds for node in to_build.values() if node.seconds >= 0) / 60
    sentence = (
        f"To build: {len(to_build)} nodes. Their nearest finished nodes took {minutes:.1f} min."
    )
    if unmeasured:
        sentence += f" {UNMEASURED.capitalize()}: {', '.join(unmeasured)}."
    return sentence


def comparison_sentence(name: str, node: Node, store: Store) -> str:
    """Return the sentence on the smallest difference that a comparison can detect with its number of prompts."""
    from stages.evaluation.win_rates import detectable  # imported here, as it loads numpy

    prompts = expected_rows(node, store)
    title = name.replace("_", " ")
    if math.isnan(prompts):
        return f"{title}: the number of compared prompts is not known yet."
    points = 100 * detectable(int(prompts))
    return f"{title}: {prompts:,.0f} prompts detect a win rate {points:.0f} points from 50% with 80% probability."


def calls_table(planned: list[PlannedCalls]) -> Table:
    """Return the table of expected calls to endpoints, with their tokens and costs."""
    numbers = ("calls", "tokens in", "out, at most", "money, at most")
    table = new_table("asks", "endpoint", "model", numbers=numbers)
    for calls in planned:
        name, model = calls.node.replace("_", " "), visible(calls.model)
        amounts = map(number, (calls.calls, calls.input_tokens, calls.output_tokens))
        table.add_row(name, calls.key, model, *amounts, number(calls.money, digits=2))
    return table


def number(value: float | None, unit: str = "", digits: int = 0) -> str:
    """Return a number as text, or `?` if it is not known."""
    if value is None or math.isnan(value):
        return "?"
    return f"{value:,.{digits}f}{unit}"
