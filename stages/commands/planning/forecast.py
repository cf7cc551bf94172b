"""Forecast how long a run still takes, from the steps of the node that runs now and the times of earlier runs."""

import math
import time

from stages.commands.planning.earlier import nearest_earlier
from stages.commands.planning.expected_calls import planned_calls, waits_for_people
from stages.store.node import Node
from stages.store.store import Store
from stages.store.workspace import Progress

FEWEST_STEPS = 3  # the first steps of a training count only together


class Forecast:
    """The seconds that a run still takes, from its running node, that node's progress, and the nodes that wait."""

    def __init__(self, store: Store):
        self.store = store
        self.measured = dict[str, float]()  # seconds of earlier runs, by fingerprint

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
        if node.fingerprint not in self.measured:
            self.measured[node.fingerprint] = self.find_earlier_seconds(node)
        return self.measured[node.fingerprint]

    def find_earlier_seconds(self, node: Node) -> float:
        """Return the seconds of the nearest earlier node; nan without one, or if the node waits for servers or people."""
        earlier = nearest_earlier(node, self.store)
        waits = waits_for_people(node) or bool(planned_calls("", node, self.store))
        if earlier is None or waits:
            return math.nan
        return earlier.seconds
