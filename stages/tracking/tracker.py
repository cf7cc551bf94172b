"""Experiment tracking: a run per attempt at a node, with its configuration, its curves, its output and its inputs.

Nothing here decides a result. Trackers live in the process that builds, never in its children.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.config.schema import Tracker
from stages.store import plugins
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.store import Store


class Run:
    """One attempt at one node, untracked (`tracker=none`): what a tracker is told, and when."""

    id: str | None = None  # W&B's: the manifest keeps it

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Metrics of a step, under the names TRL gives them."""

    def published(self, folder: Path, manifest: Manifest) -> None:
        """The node lies in `folder` now: its files become an artifact, a version of `<stage>-<fingerprint>`."""

    def finish(self, failed: bool) -> None:
        """The attempt is over."""


def describe_inputs(node: Node, root: Path) -> dict[str, dict[str, str]]:
    """By role, the fingerprint of an input and its artifact as trackers know it: the lineage, readable offline."""
    digests = Store(root).read_input_digests(node)
    return {
        role: {
            "fingerprint": input_node.fingerprint,
            "artifact": artifact_name(input_node.stage, input_node.fingerprint, digests[role]),
        }
        for role, input_node in node.inputs.items()
    }


def artifact_name(stage: str, fingerprint: str, digest: str) -> str:
    """`sft-1f09b2b85486:5a0c31de90b2`: the computation, and as an alias the content that it gave."""
    return f"{stage}-{fingerprint}:{digest[:12]}"


def artifact_metadata(manifest: Manifest) -> dict[str, Any]:
    """What an artifact says of itself: the manifest's key figures."""
    return {key: manifest[key] for key in ("digest", "seed", "device", "wall_seconds", "peak_memory", "metrics")}


@contextmanager
def track(settings: Tracker, node: Node, root: Path) -> Iterator[Run]:
    """A tracker's run for this attempt; marked failed where the stage raises."""
    run = start(settings, node, root)
    try:
        yield run
    except BaseException:
        run.finish(failed=True)
        raise
    run.finish(failed=False)


def start(settings: Tracker, node: Node, root: Path) -> Run:
    if settings.name == "none":
        return Run()
    tracker: Callable[..., Run] = plugins.load_class("tracking", settings.name, Run)
    return tracker(settings, node, root)
