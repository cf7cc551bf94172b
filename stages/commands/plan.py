"""`stage=plan`: show every node with its state, what changed since the nearest finished node, and what it costs.

Without settings it shows the command of the last run. Nothing runs. Memory is the peak that is allocated on a GPU, else
the resident peak: measured of a finished node, calculated of a training. Time is what the nearest finished node took, or
a first guess, marked as one."""

import math
import sys
from dataclasses import dataclass
from itertools import chain

from rich.table import Table

from stages.commands.finished_run import end_of_last_run, settings_of_run
from stages.commands.planning import calculated
from stages.commands.planning.calculated import CalculatedPlan
from stages.commands.planning.earlier import nearest_earlier
from stages.commands.planning.expected_calls import PlannedCalls, planned_calls, waits_for_people
from stages.commands.planning.first_guess import guess_seconds
from stages.commands.planning.peak import predicted_parts, uses_gpu
from stages.commands.result import Result, new_table, print_parts
from stages.config.errors import shortened, visible
from stages.config.schema import Config, RunLimits
from stages.config.stage_table import Target
from stages.pipeline import provenance
from stages.preflight.evaluation_settings import EVALUATING, nothing_measured_message
from stages.preflight.programs_and_servers import LONGEST, recorded_reaches, sentence_of
from stages.store.manifest import manifest_of
from stages.store.node import Node
from stages.store.store import Store

UNMEASURED = "not measured yet"


@dataclass
class PlannedNode:
    """A node with its expected cost: the bytes of memory at its peak, and seconds; nan if they are not known.
    `processor`: whose memory, GPU or RAM. `guessed`: nothing like the node was measured, so its time is a guess."""

    name: str
    stage: str
    fingerprint: str
    state: str
    changes: list[str]
    memory: float
    processor: str
    seconds: float
    guessed: bool = False


@dataclass
class PlanResult(Result):
    """`sentences`: the time of all nodes, and the stages that are not planned. `next_command`: what builds them, or
    what plans the last run if nothing is planned; None if its manifest records no command of this program."""

    nodes: list[PlannedNode]
    calls: list[PlannedCalls]
    sentences: list[str]
    next_command: str | None

    def show(self) -> None:
        print_parts(nodes_table(self.nodes))
        if self.calls:
            print_parts(calls_table(self.calls))
        print_parts(*self.sentences)


@dataclass
class LastRun(PlanResult):
    """A plan of nothing, as no settings are typed. `look_at`: settings of the last run that name a program, code or a
    server."""

    look_at: list[str]

    def show(self) -> None:
        lines = [*self.sentences, *(f"Look first: {setting}" for setting in self.look_at)]
        if self.next_command:
            lines += ["To plan it, type:", self.next_command]
        # a table would break the line that a user copies
        sys.stdout.write("\n".join([*lines, ""]))


def run(
    cfg: Config, store: Store, nodes: dict[str, Node], overrides: list[str]
) -> PlanResult | CalculatedPlan:
    """Return the plan for this machine, or for the GPUs that `plan.gpu` names. Without nodes, return the last run."""
    if not nodes:
        return show_last_run(store, overrides)
    if cfg.plan.gpu:
        return calculated.calculate(cfg, nodes, store)
    why_no_evaluation = nothing_measured_message(cfg)
    plan = plan_nodes(nodes, store, why_no_evaluation)
    last_stage = cfg.align if why_no_evaluation else Target.report
    plan.next_command = provenance.command(last_stage, overrides)
    plan.sentences += limit_sentences(cfg.limits, plan)
    return plan


def show_last_run(store: Store, overrides: list[str]) -> LastRun:
    """Return the last run with the command that plans it: somebody else may have written what its manifest records."""
    end = end_of_last_run(store)
    assert end is not None, "is_about_last_run has found it"
    manifest = manifest_of(store.folder(end))
    settings = settings_of_run(manifest)
    sentences = [f"No settings are typed. The last run is {end}."]
    if settings is None:
        recorded = shortened(visible(str(manifest.get("command"))), LONGEST)
        sentences.append(f"Its manifest records no command, but this text: {recorded}")
        return LastRun([], [], sentences, next_command=None, look_at=[])
    command = provenance.command("plan", [*overrides, *settings])
    look_at = [sentence_of([reach]) for reach in recorded_reaches(settings)]
    return LastRun([], [], sentences, next_command=command, look_at=look_at)


def plan_nodes(nodes: dict[str, Node], store: Store, why_no_evaluation: str = "") -> PlanResult:
    """Return the plan of every node in the graph. `why_no_evaluation`: why this run cannot be evaluated, so that
    evaluation is not planned; '' if it can."""
    planned = list[PlannedNode]()
    calls = dict[str, list[PlannedCalls]]()  # by fingerprint: seeds may share a node
    for name, node in nodes.items():
        if why_no_evaluation and node.stage in EVALUATING:
            continue
        planned.append(plan_node(name, node, nodes, store))
        calls[node.fingerprint] = planned_calls(name, node, store)
        if calls[node.fingerprint] or waits_for_people(node):
            planned[-1].seconds = math.nan  # it depends on servers or people
            planned[-1].guessed = False
    sentences = [time_summary(planned)]
    if why_no_evaluation:
        sentences.append(f"Not planned: {', '.join(EVALUATING)}. {why_no_evaluation}")
    return PlanResult(planned, [*chain(*calls.values())], sentences, next_command=None)


def plan_node(name: str, node: Node, nodes: dict[str, Node], store: Store) -> PlannedNode:
    """Return a node with its costs: measured if it is finished, else calculated or those of an earlier node."""
    planned = PlannedNode(
        name=name,
        stage=node.stage,
        fingerprint=node.fingerprint,
        state=store.state(node),
        changes=[f"{key}={value} changes the results here" for key, value in node.fixed.items()],
        memory=math.nan,
        processor="GPU" if uses_gpu(node) else "RAM",
        seconds=0.0,
    )
    manifest = store.find(node)
    if manifest:
        planned.memory = float(manifest["peak_gpu_memory"] or manifest["peak_memory"])
    else:
        planned.memory = sum(predicted_parts(node, nodes, store) or [math.nan])
    if planned.state != "cached":
        add_changes_and_time(planned, node, store)
        if math.isnan(planned.seconds):
            planned.seconds = guess_seconds(node, nodes, store)
            planned.guessed = not math.isnan(planned.seconds)
    return planned


def add_changes_and_time(planned: PlannedNode, node: Node, store: Store) -> None:
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
    table = new_table(*columns, numbers=("memory", "time"))
    for node in nodes:
        memory = f"{node.memory / 2**30:.1f} GiB {node.processor}"
        time = UNMEASURED if math.isnan(node.seconds) else f"{node.seconds:.0f} s"
        if node.guessed:
            time = f"a guess: {time}"
        table.add_row(
            node.name.replace("_", " "),
            node.fingerprint,
            node.state,
            visible("; ".join(node.changes)),
            "" if math.isnan(node.memory) else memory,
            "" if node.state == "cached" else time,
        )
    return table


def time_summary(planned: list[PlannedNode]) -> str:
    """Return the sentence on the time of the nodes that are still to be built."""
    to_build = {node.fingerprint: node for node in planned if node.state != "cached"}
    guessed = [node.seconds for node in to_build.values() if node.guessed]
    unmeasured = [node.name for node in to_build.values() if math.isnan(node.seconds)]
    measured = [n.seconds for n in to_build.values() if n.seconds >= 0 and not n.guessed]
    sentence = f"To build: {len(to_build)} nodes."
    if measured:
        sentence += (
            f" The nearest finished nodes of {len(measured)} took {sum(measured) / 60:.1f} min."
        )
    if guessed:
        sentence += (
            f" First guess for {len(guessed)}, from published speeds and this processor's: {sum(guessed) / 60:.1f} min, "
            "or a few times as much or as little."
        )
    if unmeasured:
        sentence += f" {UNMEASURED.capitalize()}: {', '.join(unmeasured)}."
    return sentence


def limit_sentences(limits: RunLimits, plan: PlanResult) -> list[str]:
    """Return a sentence for each limit of a command that the plan exceeds, as far as it is known."""
    known_minutes = sum(node.seconds for node in plan.nodes if node.seconds >= 0) / 60
    known_money = sum(calls.money for calls in plan.calls if calls.money and calls.money >= 0)
    sentences = list[str]()
    if limits.minutes is not None and known_minutes > limits.minutes:
        takes = f"the run may take {known_minutes:.1f} min"
        sentences.append(f"limits.minutes={limits.minutes:g}: {takes}, so it stops and is resumed.")
    if limits.money is not None and known_money > limits.money:
        costs = f"the calls may cost {known_money:.2f}"
        sentences.append(
            f"limits.money={limits.money:g}: {costs}, so the run may stop before them."
        )
    return sentences


def calls_table(planned: list[PlannedCalls]) -> Table:
    """Return the table of expected calls to endpoints, with their tokens and costs."""
    numbers = ("calls", "tokens in", "out, at most", "money, at most")
    table = new_table("asks", "endpoint", "model", numbers=numbers)
    for calls in planned:
        name = calls.node.replace("_", " ")
        model = visible(calls.model)
        amounts = map(number_text, (calls.calls, calls.input_tokens, calls.output_tokens))
        table.add_row(name, calls.key, model, *amounts, number_text(calls.money, digits=2))
    return table


def number_text(value: float | None, digits: int = 0) -> str:
    """Return a number as text, or `?` if it is not known."""
    if value is None or math.isnan(value):
        return "?"
    return f"{value:,.{digits}f}"
