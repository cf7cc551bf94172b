"""Experiment tracking: a run per executed stage, with its resolved configuration and its metrics as they come.

Nothing here decides a result. Without a key W&B runs offline, and it never asks for one.
"""

import logging
import netrc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from stages.config import Tracker
from stages.node import Node
from stages.store import Manifest

log = logging.getLogger(__name__)


class Run:
    """One attempt at one node, untracked (`tracker=none`): what a tracker is told, and when."""

    id: str | None = None

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Metrics of a step, under the names TRL gives them."""

    def published(self, folder: Path, manifest: Manifest) -> None:
        """The node lies in `folder` now: the place where artifacts and lineage are recorded."""

    def finish(self, failed: bool) -> None:
        """The attempt is over."""


class WandbRun(Run):
    """`tracker=wandb`: a Weights & Biases run (https://docs.wandb.ai), its files under `outputs/cache/wandb`."""

    def __init__(self, settings: Tracker, node: Node, root: Path):
        folder = (root / "cache" / "wandb").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            os.environ.setdefault(variable, str(folder))
        import wandb

        def start(mode: str) -> Any:
            return wandb.init(
                project=settings.project,
                entity=settings.entity,
                group=settings.group,
                job_type=node.stage,
                name=str(node),
                config={
                    **asdict(node.config),
                    "fingerprint": node.fingerprint,
                    "inputs": {role: given.fingerprint for role, given in node.inputs.items()},
                },
                dir=str(folder.parent),
                mode=mode,  # type: ignore[arg-type]
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True,
                    init_timeout=30,
                    # No console, code, arguments or git remote is sent: none can leak a secret then.
                    console="off",
                    disable_git=True,
                    save_code=False,
                    x_disable_meta=True,
                ),
            )

        mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
        try:
            self.run = start(mode)
        except wandb.errors.Error as error:
            log.warning("warning: W&B cannot be reached (%s): this run is logged offline.", error)
            self.run = start("offline")
        self.id = self.run.id

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.run.log(metrics, step=step)

    def published(self, folder: Path, manifest: Manifest) -> None:
        figures = {k: v for k, v in manifest["metrics"].items() if isinstance(v, int | float | str)}
        self.run.summary.update({**figures, "wall_seconds": manifest["wall_seconds"]})

    def finish(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def has_wandb_key() -> bool:
    """Whether a W&B key is in the environment or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


@contextmanager
def track(settings: Tracker, node: Node, root: Path) -> Iterator[Run]:
    """A tracker's run for this attempt; marked failed where the stage raises."""
    run = WandbRun(settings, node, root) if settings.name == "wandb" else Run()
    try:
        yield run
    except BaseException:
        run.finish(failed=True)
        raise
    run.finish(failed=False)
