"""`stage=plan`: show every node with its state, what changed since the nearest finished node, and what it costs if an
extra forecasts it.

Without settings it shows the command of the last run. Nothing runs."""

from itertools import chain

from stages.commands.earlier import Earlier, nearest_earlier
from stages.commands.expected_costs import Forecast, find_forecast
from stages.commands.finished_run import end_of_last_run, settings_of_run
from stages.commands.plan_result import LastRun, PlannedCalls, PlannedNode, PlanResult
from stages.commands.result import Result
from stages.config.errors import shortened, visible
from stages.config.schema import Config
from stages.config.stage_table import Target
from stages.pipeline import provenance
from stages.preflight.evaluation_settings import EVALUATING, nothing_measured_message
from stages.preflight.programs_and_servers import LONGEST, recorded_reaches, sentence_of
from stages.store.manifest import manifest_of
from stages.store.node import Node
from stages.store.store import Store


def run(cfg: Config, store: Store, nodes: dict[str, Node], overrides: list[str]) -> Result:
    """Return the plan for this machine, or the memory on GPUs that the settings name. Without nodes, return the last
    run."""
    if not nodes:
        return show_last_run(store, overrides)
    forecast = find_forecast(nodes, store)
    memory = forecast.memory_on_planned_gpus(cfg)
    if memory:
        return memory
    why_no_evaluation = nothing_measured_message(cfg)
    plan = plan_nodes(nodes, store, forecast, why_no_evaluation)
    last_stage = cfg.align if why_no_evaluation else Target.report
    plan.next_command = provenance.command(last_stage, overrides)
    plan.sentences += forecast.limit_sentences(cfg.limits, plan)
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


def plan_nodes(
    nodes: dict[str, Node], store: Store, forecast: Forecast, why_no_evaluation: str = ""
) -> PlanResult:
    """Return the plan of every node in the graph. `why_no_evaluation`: why this run cannot be evaluated, so that
    evaluation is not planned; '' if it can."""
    planned = list[PlannedNode]()
    calls = dict[str, list[PlannedCalls]]()  # by fingerprint: seeds may share a node
    for name, node in nodes.items():
        if why_no_evaluation and node.stage in EVALUATING:
            continue
        planned_node, calls[node.fingerprint] = plan_node(name, node, store, forecast)
        planned.append(planned_node)
    sentences = [build_sentence(planned, forecast)]
    if why_no_evaluation:
        sentences.append(f"Not planned: {', '.join(EVALUATING)}. {why_no_evaluation}")
    return PlanResult(planned, [*chain(*calls.values())], sentences, next_command=None)


def plan_node(
    name: str, node: Node, store: Store, forecast: Forecast
) -> tuple[PlannedNode, list[PlannedCalls]]:
    """Return a node with its state, its changes and its costs, and its calls to endpoints."""
    state = store.state(node)
    changes = [f"{key}={value} changes the results here" for key, value in node.fixed.items()]
    earlier = None
    if state != "cached":
        earlier = nearest_earlier(node, store)
        changes += changes_since(earlier)
    costs = forecast.costs(name, state, earlier)
    planned = PlannedNode(
        name=name,
        stage=node.stage,
        fingerprint=node.fingerprint,
        state=state,
        changes=changes,
        memory=costs.memory,
        processor=costs.processor,
        seconds=costs.seconds,
        guessed=costs.guessed,
    )
    return planned, costs.calls


def changes_since(earlier: Earlier | None) -> list[str]:
    """Return what changed since the nearest finished node."""
    if earlier is None:
        return ["no earlier node to compare with"]
    same = ["rebuilt because of rebuild=, a rebuilt input or a damaged file"]
    return earlier.differences or same


def build_sentence(planned: list[PlannedNode], forecast: Forecast) -> str:
    """Return the sentence on the nodes that are still to be built, with their time."""
    to_build = {node.fingerprint: node for node in planned if node.state != "cached"}
    count = f"To build: {len(to_build)} nodes."
    return " ".join([count, *forecast.time_sentences([*to_build.values()])])
