"""The forecast of a run: the costs of its nodes for `stage=plan`, and the time left for its page.

Memory is the peak that is allocated on a GPU, else the resident peak: measured of a finished node, calculated of a
training. Time is what the nearest finished node took, or a first guess, marked as one."""

import math
import time

from stages.commands.earlier import Earlier, nearest_earlier, uses_gpu
from stages.commands.expected_costs import Forecast, NodeCosts
from stages.commands.plan_result import UNMEASURED, PlannedNode, PlanResult
from stages.config.schema import Config, RunLimits
from stages.extras.forecast.calculated import CalculatedPlan, calculate
from stages.extras.forecast.expected_calls import planned_calls, waits_for_people
from stages.extras.forecast.first_guess import guess_seconds
from stages.extras.forecast.peak import predicted_parts
from stages.store.node import Node
from stages.store.store import Store
from stages.store.workspace import Progress

FEWEST_STEPS = 3  # the first steps of a training count only together


class RunForecast(Forecast):
    """Costs by measured nodes, by the shapes of models, and by the settings of endpoints."""

    def __init__(self, nodes: dict[str, Node], store: Store):
        super().__init__(nodes, store)
        self.seconds_of_earlier = dict[str, float]()  # by fingerprint

    def memory_on_planned_gpus(self, cfg: Config) -> CalculatedPlan | None:
        if cfg.planned_gpu is None:
            return None
        return calculate(cfg, self.nodes, self.store)

    def costs(self, name: str, state: str, earlier: Earlier | None) -> NodeCosts:
        node = self.nodes[name]
        costs = NodeCosts(
            memory=self.memory(node),
            processor="GPU" if uses_gpu(node) else "RAM",
            calls=planned_calls(name, node, self.store),
        )
        if costs.calls or waits_for_people(node):
            return costs  # its time depends on servers or people
        if state == "cached":
            costs.seconds = 0.0
            return costs
        costs.seconds = earlier.seconds if earlier else math.nan
        if math.isnan(costs.seconds):
            costs.seconds = guess_seconds(node, self.nodes, self.store)
            costs.guessed = not math.isnan(costs.seconds)
        return costs

    def memory(self, node: Node) -> float:
        """Return the bytes at a node's peak: measured if it is finished, else calculated of a training, else nan."""
        manifest = self.store.find(node)
        if manifest:
            return float(manifest["peak_gpu_memory"] or manifest["peak_memory"])
        return sum(predicted_parts(node, self.nodes, self.store) or [math.nan])

    def time_sentences(self, to_build: list[PlannedNode]) -> list[str]:
        guessed = [node.seconds for node in to_build if node.guessed]
        unmeasured = [node.name for node in to_build if math.isnan(node.seconds)]
        measured = [n.seconds for n in to_build if n.seconds >= 0 and not n.guessed]
        sentences = list[str]()
        if measured:
            minutes = sum(measured) / 60
            sentences.append(
                f"The nearest finished nodes of {len(measured)} took {minutes:.1f} min."
            )
        if guessed:
            sentences.append(
                f"First guess for {len(guessed)}, from published speeds and this processor's: {sum(guessed) / 60:.1f} min, "
                "or a few times as much or as little."
            )
        if unmeasured:
            sentences.append(f"{UNMEASURED.capitalize()}: {', '.join(unmeasured)}.")
        return sentences

    def limit_sentences(self, limits: RunLimits, plan: PlanResult) -> list[str]:
        known_minutes = sum(node.seconds for node in plan.nodes if node.seconds >= 0) / 60
        known_money = sum(calls.money for calls in plan.calls if calls.money and calls.money >= 0)
        sentences = list[str]()
        if limits.minutes is not None and known_minutes > limits.minutes:
            takes = f"the run may take {known_minutes:.1f} min"
            sentences.append(
                f"limits.minutes={limits.minutes:g}: {takes}, so it stops and is resumed."
            )
        if limits.money is not None and known_money > limits.money:
            costs = f"the calls may cost {known_money:.2f}"
            sentences.append(
                f"limits.money={limits.money:g}: {costs}, so the run may stop before them."
            )
        return sentences

    def seconds_left(
        self, running: Node, progress: Progress, waiting: list[Node]
    ) -> tuple[float, list[Node]]:
        """Return the seconds of all nodes whose time is known, and the waiting nodes whose time is not: those that were
        never measured, or that wait for servers or people. The seconds are nan after too few steps."""
        steps_done = progress.done - progress.first_row
        if steps_done < FEWEST_STEPS:
            return math.nan, []
        seconds_per_step = (time.monotonic() - progress.started) / steps_done
        steps_left = progress.total - progress.done
        seconds = seconds_per_step * steps_left
        unknown = list[Node]()
        for node in waiting:
            earlier = self.earlier_seconds(node)
            if math.isnan(earlier):
                unknown.append(node)
            else:
                seconds += earlier
        return seconds, unknown

    def earlier_seconds(self, node: Node) -> float:
        """Return the seconds that the nearest earlier node took; nan if it is not known."""
        if node.fingerprint not in self.seconds_of_earlier:
            self.seconds_of_earlier[node.fingerprint] = self.find_earlier_seconds(node)
        return self.seconds_of_earlier[node.fingerprint]

    def find_earlier_seconds(self, node: Node) -> float:
        """Return the seconds of the nearest earlier node; nan without one, or if the node waits for servers or people."""
        earlier = nearest_earlier(node, self.store)
        waits = waits_for_people(node) or bool(planned_calls("", node, self.store))
        if earlier is None or waits:
            return math.nan
        return earlier.seconds
