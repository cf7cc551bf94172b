"""Experiment tracking: a run per attempt at a node in every tracker of `tracker=`, with its configuration, curves,
figures, tables and inputs.

Trackers change no result. They live in the process that builds, never in its children."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.config.blocks.processes import Tracker
from stages.config.errors import LimitReached
from stages.store import plugins
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.sealed_json import warn_once
from stages.store.store import Store
from stages.tracking.tables import Table, read_tables

# by tracker: where the runs of this process are, with the command that opens them
openings = dict[str, str]()


@dataclass(frozen=True)
class Attempt:
    """What every tracker is told when an attempt at a node starts."""

    id: str  # STAGE-FINGERPRINT-NUMBER
    stage: str
    name: str  # of the node
    project: str
    group: str  # the user's, or else of all attempts at this node: one that is killed is resumed by another
    config: dict[str, Any]  # of the stage, with the fingerprint and the lineage


class Run:
    """The run of one attempt in one tracker. The derived class is in the file with the tracker's name, or in `tracker.py`
    of an extra with that name. The methods are called in this order; what a tracker has no place for is left out. They
    may fail: the run then lacks a part."""

    def __init__(self, attempt: Attempt, files: Path, settings: Tracker):
        """Start the run. `files` is the tracker's own folder in the store, `outputs/cache/NAME`."""

    def opening(self) -> str:
        """Return one line that says where the runs are and what opens them; '' if the tracker does not know."""
        return ""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log the metrics of a step, under TRL's names."""

    def summarize(self, figures: dict[str, Any]) -> None:
        """Log the figures that the published node ended with."""

    def show(self, tables: dict[str, Table]) -> None:
        """Log tables of texts by name."""

    def keep(self, folder: Path, manifest: Manifest) -> None:
        """Log the published node as an artifact."""

    def finish(self, failed: bool) -> None:
        """End the run."""

    def stop(self, reason: str) -> None:
        """End the run of an attempt that stopped at a limit of `limits`, and that another attempt resumes."""
        self.summarize({"stopped": reason})
        self.finish(failed=False)


class Runs:
    """The runs of one attempt, by the tracker's name. A tracker that fails only warns, as it must stop no training."""

    def __init__(self, settings: Tracker, node: Node, root: Path):
        self.runs = dict[str, Run]()
        attempt = describe_attempt(settings, node, root)
        for name in settings.names:
            with only_warn(name):
                files = (root / "cache" / name).resolve()
                files.mkdir(parents=True, exist_ok=True)
                run_class = plugins.load_class("tracking", name, Run)
                self.runs[name] = run_class(attempt, files, settings)
                openings[name] = self.runs[name].opening()
        # the manifest keeps it, for stage=sync
        self.wandb_id = attempt.id if "wandb" in self.runs else None

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log the metrics of a step."""
        self.tell(lambda run: run.log(metrics, step))

    def published(self, folder: Path, manifest: Manifest) -> None:
        """Log the figures and tables of a published node, and the node itself."""
        figures = {**manifest["metrics"], "wall_seconds": manifest["wall_seconds"]}
        self.tell(lambda run: run.summarize(figures))
        self.tell(lambda run: run.show(read_tables(manifest["stage"], folder)))
        self.tell(lambda run: run.keep(folder, manifest))

    def stop(self, reason: str) -> None:
        """End the runs of an attempt that stopped at a limit."""
        self.tell(lambda run: run.stop(reason))

    def finish(self, failed: bool) -> None:
        """End the runs."""
        self.tell(lambda run: run.finish(failed))

    def tell(self, call: Callable[[Run], None]) -> None:
        for name, run in self.runs.items():
            with only_warn(name):
                call(run)


@contextmanager
def only_warn(tracker: str) -> Iterator[None]:
    """Turn an error of a tracker into a warning, once in a process."""
    try:
        yield
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        warn_once(f"tracker={tracker} failed ({failure}), so it lacks a part of this run.")


@contextmanager
def track(settings: Tracker, node: Node, root: Path) -> Iterator[Runs]:
    """Yield the runs for this attempt. If the stage raises an error, they are marked as failed; at a limit, as
    stopped."""
    runs = Runs(settings, node, root)
    try:
        yield runs
    except LimitReached as reached:
        runs.stop(str(reached))
        raise
    except BaseException:
        runs.finish(failed=True)
        raise
    runs.finish(failed=False)


def describe_attempt(settings: Tracker, node: Node, root: Path) -> Attempt:
    """Return what a new attempt at a node is. Its configuration names the inputs: the lineage, readable offline."""
    digests = Store(root).read_input_digests(node)
    inputs = {
        role: {
            "fingerprint": n.fingerprint,
            "artifact": artifact_name(n.stage, n.fingerprint, digests[role]),
        }
        for role, n in node.inputs.items()
    }
    return Attempt(
        id=f"{node.stage}-{node.fingerprint}-{secrets.token_hex(4)}",
        name=str(node),
        stage=node.stage,
        project=settings.project,
        group=settings.group or f"{node.stage}-{node.fingerprint}",
        config={**asdict(node.config), "fingerprint": node.fingerprint, "inputs": inputs},
    )


def artifact_name(stage: str, fingerprint: str, digest: str) -> str:
    """Return `STAGE-FINGERPRINT:DIGEST`, where the first 12 digits of the content's digest are the version."""
    return f"{stage}-{fingerprint}:{digest[:12]}"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their keys with dots: `runtime.device`."""
    found = dict[str, Any]()
    for key, value in values.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among nested figures, by their keys with dots after `summary/`, apart from the curves."""
    return {
        f"summary/{key}": value
        for key, value in flat(figures).items()
        if isinstance(value, int | float)
    }
