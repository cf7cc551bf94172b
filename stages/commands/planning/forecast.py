"""Forecast how long a run still takes, from the steps of the training that runs now, or from earlier runs."""

import math
import time
from functools import cached_property

from stages.commands.planning import counts
from stages.commands.planning.cost import (
    RunHistory,
    expected_cost,
    expected_sizes,
    is_answered_by_base,
)
from stages.commands.planning.counts import asked_prompts, generated_rows, stage_tokens
from stages.commands.planning.expected_calls import endpoint_calls, waits_for_people
from stages.config.blocks.training import Training
from stages.config.installation import read_beside
from stages.store.node import Node
from stages.store.store import Store
from stages.store.workspace import Progress

PAIRS = 0.5  # pairs of a prompt, until they are counted
MEASURED_STEPS = 3  # the first steps of a training count only together


class Forecast:
    """The seconds that a run still takes, from its running node, that node's progress, and the nodes that wait."""

    def __init__(self, nodes: dict[str, Node], store: Store):
        self.nodes, self.store = nodes, store
        self.second_per_token = math.nan

    @cached_property
    def history(self) -> RunHistory:
        """The finished nodes, which are read when the first forecast is made."""
        return RunHistory(self.store)

    def seconds_left(self, running: Node, progress: Progress, waiting: list[Node]) -> float:
        """Return the seconds, or nan if too little is measured, or a node waits for servers or people."""
        steps = progress.done - progress.first_row
        if steps < MEASURED_STEPS or any(map(self.waits_for_others, waiting)):
            return math.nan
        per_step = (time.monotonic() - progress.started) / steps
        if isinstance(running.config, Training):
            self.second_per_token = per_step * progress.total / self.work(running)
        return per_step * (progress.total - progress.done) + sum(map(self.seconds, waiting))

    def waits_for_others(self, node: Node) -> bool:
        return waits_for_people(node) or bool(endpoint_calls(node, self.store, self.history))

    def seconds(self, node: Node) -> float:
        """Return what a node takes: as measured in earlier runs on this processor, else by its tokens."""
        measured = expected_cost(node, self.nodes, self.store, self.history).seconds
        return self.second_per_token * self.work(node) if math.isnan(measured) else measured

    def work(self, node: Node) -> float:
        """Return what a node costs in tokens that SFT trains; 0 if no token goes through a model."""
        if not counts.reads_tokens(node.stage, node.settings):
            return 0.0
        inputs = {role: each.stage for role, each in node.inputs.items()}
        from_base = is_answered_by_base(node.settings, inputs)
        sizes = expected_sizes(node, self.store, self.history)
        if not sizes.rows:
            sizes = sizes._replace(rows=PAIRS * self.prompts(node))
        tokens = stage_tokens(node.stage, node.settings, sizes, from_base)
        costs = read_beside(__file__)
        cost = costs[f"{node.stage} base"] if from_base else costs[node.stage]
        return float(cost["start"] + cost["token"] * tokens)

    def prompts(self, node: Node) -> float:
        """Return the prompts whose candidates become a node's pairs."""
        pool = next((each for each in reversed(node.lineage) if each.stage == "sample"), None)
        data = next(each for each in node.lineage if each.stage == "data")
        return asked_prompts(pool, generated_rows(data)["preference"]) if pool else math.nan
