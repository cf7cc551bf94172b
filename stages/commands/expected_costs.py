"""The probable costs of a run's nodes. An extra forecasts them; without one nothing is expected."""

import math
from dataclasses import dataclass, field

from stages.commands.earlier import Earlier
from stages.commands.plan_result import PlannedCalls, PlannedNode, PlanResult
from stages.commands.result import Result
from stages.config.schema import Config, RunLimits
from stages.store import plugins
from stages.store.node import Node
from stages.store.store import Store
from stages.store.workspace import Progress


@dataclass
class NodeCosts:
    """The costs of a node, as `PlannedNode` has them, and its calls to endpoints."""

    memory: float = math.nan
    processor: str | None = None
    seconds: float = math.nan
    guessed: bool = False
    calls: list[PlannedCalls] = field(default_factory=list)


class Forecast:
    """The costs of a run's nodes. This class expects none; that of an extra is derived from it."""

    def __init__(self, nodes: dict[str, Node], store: Store):
        self.nodes = nodes
        self.store = store

    def memory_on_planned_gpus(self, cfg: Config) -> Result | None:
        """Return the memory on the GPUs that settings plan for; None if they plan for this machine."""
        return None

    def costs(self, name: str, state: str, earlier: Earlier | None) -> NodeCosts:
        """Return the costs of the node of this name, with its state and the nearest earlier node."""
        return NodeCosts()

    def time_sentences(self, to_build: list[PlannedNode]) -> list[str]:
        """Return sentences on the time of these nodes."""
        return []

    def limit_sentences(self, limits: RunLimits, plan: PlanResult) -> list[str]:
        """Return a sentence for each limit of a command that a plan exceeds, as far as it is known."""
        return []

    def seconds_left(
        self, running: Node, progress: Progress, waiting: list[Node]
    ) -> tuple[float, list[Node]]:
        """Return the seconds of the nodes whose time is known, and the waiting nodes whose time is not. The seconds are
        nan if nothing is known."""
        return math.nan, []


def find_forecast(nodes: dict[str, Node], store: Store) -> Forecast:
    """Return the forecast of the extra that has one; without such an extra, one that expects nothing."""
    for kind in plugins.classes_of_extras("commands", Forecast):
        return kind(nodes, store)
    return Forecast(nodes, store)
