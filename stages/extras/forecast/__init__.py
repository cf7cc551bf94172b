"""The memory, time, calls and money that nodes will probably take: on a plan, and the time left on the page of a run."""

from dataclasses import dataclass

from stages.config import choices
from stages.config.limits import words


@dataclass
class Plan:
    """The machine that `stage=plan` plans for."""

    # of another machine, by calculation: launch.processes of these GPUs on each of launch.nodes; null: this machine
    gpu: str | None = words(*choices.GPUS, default=None)


BLOCKS = {"plan": Plan}
