"""Clusters whose tasks compute the blocks of a stage. Each is an extra with a `cluster.py`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from stages.config.blocks.processes import Launch
from stages.config.blocks.runtimes import SamplingRuntime, ScoringRuntime
from stages.store import plugins
from stages.store.blocks import Block

Runtime = SamplingRuntime | ScoringRuntime


class Cluster(ABC):
    """The tasks of a cluster, each of which computes a block. `runtime`: the stage's, as the tasks have it."""

    runtime: Runtime

    @classmethod
    @abstractmethod
    def of(cls, launch: Launch, runtime: Runtime) -> Self | None:
        """Return the cluster that the settings name, or None."""

    @abstractmethod
    def run_tasks(
        self, job_file: Path, blocks: Sequence[Block[Any]], poll: Callable[[], None]
    ) -> None:
        """Run a task for each block, and call `poll` twice a second until all have ended.

        Raises:
            UserError: if the cluster cannot be used, or a task raised a UserError.
            RuntimeError: for any other error of a task, with its traceback."""


def find_cluster(launch: Launch, runtime: Any) -> Cluster | None:
    """Return the cluster that computes the blocks of a stage with this runtime; None to compute them here."""
    if not isinstance(runtime, Runtime):
        return None
    for kind in plugins.classes_of_extras("launch", Cluster):  # type: ignore[type-abstract]
        cluster = kind.of(launch, runtime)
        if cluster:
            return cluster
    return None
