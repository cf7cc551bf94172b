"""Which tracker is told of an attempt. Trackers live in the process that builds, never in its children."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.config.schema import Tracker
from stages.store import plugins
from stages.store.node import Node
from stages.tracking.tracker import Run


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
    tracker: Callable[..., Run] = plugins.named("tracking", settings.name, Run)
    return tracker(settings, node, root)
