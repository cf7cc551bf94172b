"""The tracker `tracker=trackio`: the Space or server that TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names, else databases
in `outputs/cache/trackio`. `TRACKIO_DIR=outputs/cache/trackio trackio show` shows them."""

import io
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from stages.config.blocks.processes import Tracker
from stages.tracking.tables import Table
from stages.tracking.tracker import Attempt, Run, numbers

SERVERS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class TrackioRun(Run):
    """A run of trackio. What trackio prints is left out."""

    def __init__(self, attempt: Attempt, files: Path, settings: Tracker):
        os.environ.setdefault("TRACKIO_DIR", str(files))
        with redirect_stdout(io.StringIO()), asking_nobody():
            import trackio

            self.run = trackio.init(
                project=attempt.project,
                name=attempt.id,
                group=attempt.group,
                config=attempt.config,
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def opening(self) -> str:
        for variable in SERVERS:
            if os.environ.get(variable):
                return f"trackio has the runs: {variable}={os.environ[variable]}"
        folder = shlex.quote(os.environ["TRACKIO_DIR"])
        return f"trackio shows the runs: TRACKIO_DIR={folder} trackio show"

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.run.log(metrics, step=step)

    def summarize(self, figures: dict[str, Any]) -> None:
        self.run.log(numbers(figures))

    def show(self, tables: dict[str, Table]) -> None:
        from trackio import Table as TrackioTable

        for name, (columns, rows) in tables.items():
            self.run.log({name: TrackioTable(columns=columns, data=rows)})

    def finish(self, failed: bool) -> None:
        import trackio

        with redirect_stdout(io.StringIO()):
            trackio.finish()


@contextmanager
def asking_nobody() -> Iterator[None]:
    """Keep trackio from asking the hub for the name of the token's user where it only writes files."""
    from huggingface_hub import constants

    was_offline = constants.HF_HUB_OFFLINE
    remote = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
    constants.HF_HUB_OFFLINE = was_offline or not remote
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline
