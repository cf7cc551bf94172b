"""The blocks of a run's processes: where they are tracked, and how many there are. Extras add keys to both."""

from dataclasses import dataclass

from omegaconf import MISSING

from stages.config import choices
from stages.config.extras import extras_with
from stages.config.limits import at_least

TRACKERS = ("wandb", *extras_with("tracker.py"))


@dataclass
class Tracker:
    """Where runs are tracked. Each option adds its own: `tracker=[wandb,NAME]` is both."""

    wandb: bool = False
    project: str = MISSING
    entity: str | None = MISSING
    group: str | None = MISSING
    upload: bool = MISSING

    @property
    def names(self) -> list[str]:
        return [name for name in TRACKERS if vars(self)[name]]


@dataclass
class Launch:
    """The processes that train, sample and score. Several machines share the store; node 0 publishes the result."""

    processes: int = at_least(1)
    nodes: int = at_least(1)
    node_rank: int = MISSING
    rendezvous: str | None = MISSING
    sharding: choices.Sharding = MISSING
