"""What a plan expects against what ran: `python -m tests.bench.plan [OUTPUTS]`.

For every finished node that sends tokens through a model: its seconds; and as multiples of them those that the table
of guesses gives, and those that the other nodes of the store give. Then, by stage and precision, what
`stages.hardware.speed.GUESSED` would have to say for this store.
"""

import logging
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from stages.commands.planning.cost import Past
from stages.hardware import speed
from stages.store.store import Store
from tests.helpers import ROOT


def main(outputs: Path) -> None:
    ran = Past(Store(outputs)).ran
    fitting = defaultdict[tuple[str, str], list[float]](list)
    logging.info("%-10s %-5s %9s %12s %8s %8s", "stage", "", "seconds", "passes", "guessed", "learned")
    for i, node in enumerate(ran):
        task = node.task
        if not task.passes:
            continue
        learned, known = speed.expected(task, ran[:i] + ran[i + 1 :])
        ratios = task.guess / node.seconds, learned / node.seconds
        logging.info(
            "%-10s %-5s %9.1f %12.0f %8.2f %8.2f %s",
            task.stage,
            task.precision,
            node.seconds,
            task.passes,
            *ratios,
            known.name,
        )
        if node.seconds > task.fixed:
            fitting[task.stage, task.precision].append(task.operations / (node.seconds - task.fixed) / task.devices)
    for (stage, precision), rates in sorted(fitting.items()):
        logging.info(
            "%-10s %-5s %8.0fe9 operations/s on each core or GPU", stage, precision, statistics.median(rates) / 1e9
        )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(ROOT / (sys.argv[1] if len(sys.argv) > 1 else "outputs"))
