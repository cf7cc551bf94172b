"""Experiment tracking: a run per attempt at a node, with its configuration, curves, output and inputs.

Trackers change no result. They live in the process that builds, never in its children."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from stages.config.schema import Tracker
from stages.store import plugins
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.sealed_json import warn_once
from stages.store.store import Store


def or_warn(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of W&B that fails only warn, once in a process, and return None: a tracker stops no training."""

    @wraps(method)
    def attempt(*values: Any, **named: Any) -> Any:
        try:
            return method(*values, **named)
        except Exception as error:
            return warn_once(
                f"W&B failed ({type(error).__name__}: {error}), so it lacks a part of this run."
            )

    return attempt


class Run:
    """The run of one attempt at a node. This base class (`tracker=none`) ignores all calls, in their order here."""

    id: str | None = None  # the id of a W&B run, which the manifest keeps

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Log the metrics of a step, under TRL's names."""

    def published(self, folder: Path, manifest: Manifest) -> None:
        """Log the published node as an artifact: a new version of `STAGE-FINGERPRINT` with the node's files."""

    def finish(self, failed: bool) -> None:
        """End the run."""


def describe_inputs(node: Node, root: Path) -> dict[str, dict[str, str]]:
    """Return by role the fingerprint and the artifact's name of each input: the lineage, readable offline."""
    digests = Store(root).read_input_digests(node)
    return {
        role: {
            "fingerprint": n.fingerprint,
            "artifact": artifact_name(n.stage, n.fingerprint, digests[role]),
        }
        for role, n in node.inputs.items()
    }


def artifact_name(stage: str, fingerprint: str, digest: str) -> str:
    """Return `STAGE-FINGERPRINT:DIGEST`, where the first 12 digits of the content's digest are the version."""
    return f"{stage}-{fingerprint}:{digest[:12]}"


@contextmanager
def track(settings: Tracker, node: Node, root: Path) -> Iterator[Run]:
    """Yield a tracker's run for this attempt. If the stage raises an error, the run is marked as failed."""
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
    return or_warn(tracker)(settings, node, root) or Run()
