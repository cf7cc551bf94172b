"""Forecast how long a run still takes, from the steps of the node that runs now and the times of earlier runs."""

import math
import time

from stages.commands.planning.earlier import nearest_earlier
from stages.commands.planning.expected_calls import planned_calls, waits_for_people
from stages.store.node import Node
from stages.store.store import Store
from stages.store.workspace import Progress

MEASURED_STEPS = 3  # the first steps of a training count only together


class Forecast:
    """The seconds that a run still takes, from its running node, that node's progress, and the nodes that wait."""

    def __init__(self, store: Store):
        self.store = store
        self.measured = dict[str, float]()  # seconds of earlier runs, by fingerprint

    def seconds_left(self, running: Node, progress: Progress, waiting: list[Node]) -> float:
        """Return the seconds; nan if a node that waits was never measured, or waits for servers or people."""
        steps = progress.done - progress.first_row
        if steps < MEASURED_STEPS:
            return math.nan
        per_step = (time.monotonic() - progress.started) / steps
        return per_step * (progress.total - progress.done) + sum(map(self.seconds, waiting))

    def seconds(self, node: Node) -> float:
        """Return the seconds that the nearest earlier node took on this processor; nan without one."""
        if node.fingerprint not in self.measured:
            self.measured[node.fingerprint] = self.measure(node)
        return self.measured[node.fingerprint]

    def measure(self, node: Node) -> float:
        earlier = nearest_earlier(node, self.store)
        waits = waits_for_people(node) or bool(planned_calls("", node, self.store))
        if earlier is None or waits:
            return math.nan
        return earlier.seconds
