"""Forecast how long a run still takes, from the steps of the training that runs now, or from earlier runs."""

import math
import time

from stages.commands.planning.earlier import nearest_earlier
from stages.commands.planning.expected_calls import planned_calls, waits_for_people
from stages.commands.planning.rows import expected_prompts, expected_rows, repeats
from stages.config.blocks.training import Training
from stages.store.node import Node
from stages.store.store import Store
from stages.store.workspace import Progress

# What a stage costs, in rows that SFT trains: in all, and for each row, epoch and candidate. Measured with recipe=demo on
# two cores of an AMD EPYC in bf16.
COSTS = {
    "sft": (75, 1.0),
    "dpo": (75, 3.8),
    "kto": (75, 1.9),
    "grpo": (75, 0.8),
    "reward": (75, 2.0),
    "reference": (12, 0.2),
    "sample": (12, 0.2),
    "answer": (12, 0.3),
    "eval": (12, 0.6),
}
PAIRS = 0.5  # pairs of a prompt, until they are counted
MEASURED_STEPS = 3  # the first steps of a training count only together


class Forecast:
    """The seconds that a run still takes, from its running node, that node's progress, and the nodes that wait."""

    def __init__(self, store: Store):
        self.store = store
        self.unit = math.nan  # seconds in which SFT trains a row
        self.measured = dict[str, float]()  # seconds of earlier runs, by fingerprint

    def seconds_left(self, running: Node, progress: Progress, waiting: list[Node]) -> float:
        """Return the seconds, or nan if too little is measured, or a node waits for servers or people."""
        steps = progress.done - progress.first_row
        if steps < MEASURED_STEPS or any(map(self.waits_for_others, waiting)):
            return math.nan
        per_step = (time.monotonic() - progress.started) / steps
        if isinstance(running.config, Training):
            self.unit = per_step * progress.total / self.work(running)
        return per_step * (progress.total - progress.done) + sum(map(self.seconds, waiting))

    def waits_for_others(self, node: Node) -> bool:
        return waits_for_people(node) or bool(planned_calls("", node, self.store))

    def seconds(self, node: Node) -> float:
        """Return what a node takes: as its nearest earlier node on this processor, else by its rows."""
        if node.fingerprint not in self.measured:
            earlier = nearest_earlier(node, self.store)
            self.measured[node.fingerprint] = earlier.seconds if earlier else math.nan
        measured = self.measured[node.fingerprint]
        return self.unit * self.work(node) if math.isnan(measured) else measured

    def work(self, node: Node) -> float:
        """Return what a node costs in rows that SFT trains; 0 if it runs no model."""
        if node.stage not in COSTS or not getattr(node.config, "train", True):
            return 0.0
        rows = expected_rows(node, self.store)
        if math.isnan(rows):
            rows = PAIRS * self.prompts(node)
        start, row = COSTS[node.stage]
        return start + row * rows * repeats(node)

    def prompts(self, node: Node) -> float:
        """Return the prompts whose candidates become a node's pairs."""
        pools = [each for each in node.lineage if each.stage == "sample"]
        return expected_prompts(pools[-1], self.store) if pools else math.nan
