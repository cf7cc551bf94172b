"""The tracker `tracker=mlflow`: the server that MLFLOW_TRACKING_URI names, else a database in `outputs/cache/mlflow`.
`mlflow ui --backend-store-uri sqlite:///outputs/cache/mlflow/mlflow.db` shows it."""

import os
import re
import shlex
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from stages.config.blocks.processes import Tracker
from stages.config.errors import UserError
from stages.tracking.tables import Table
from stages.tracking.tracker import Attempt, Run, flat, numbers

AT_ONCE = 100  # parameters that a server takes in one call
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # a training waits seconds for a server that is gone, not minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class MLflowRun(Run):
    """A run of MLflow, in the experiment of the project's name. Groups are tags."""

    def __init__(self, attempt: Attempt, files: Path, settings: Tracker):
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        server = os.environ.get("MLFLOW_TRACKING_URI")
        self.store = server or f"sqlite:///{files / 'mlflow.db'}"
        place = None if server else (files / "artifacts").as_uri()
        with FileLock(
            files / "lock"
        ):  # two processes that make a database at once make a broken one
            self.client = MlflowClient(self.store)
            experiment = self.client.get_experiment_by_name(attempt.project)
            if experiment and not server:
                require_place_inside(experiment.artifact_location, files, attempt.project)
            number = (
                experiment.experiment_id
                if experiment
                else self.client.create_experiment(attempt.project, place)
            )
        tags = {"group": attempt.group, "stage": attempt.stage, "attempt": attempt.id}
        self.id = self.client.create_run(number, tags=tags, run_name=attempt.name).info.run_id
        params = [Param(accepted(k), str(v)) for k, v in flat(attempt.config).items()]
        for start in range(0, len(params), AT_ONCE):
            self.client.log_batch(self.id, params=params[start : start + AT_ONCE])

    def opening(self) -> str:
        return f"MLflow shows the runs: mlflow ui --backend-store-uri {shlex.quote(self.store)}"

    def log(self, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(accepted(k), float(v), now, step) for k, v in metrics.items()]
        self.client.log_batch(self.id, metrics=points)

    def summarize(self, figures: dict[str, Any]) -> None:
        self.log(numbers(figures), 0)
        self.client.log_dict(self.id, figures, "summary.json")

    def show(self, tables: dict[str, Table]) -> None:
        for name, (columns, rows) in tables.items():
            cells = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
            self.client.log_table(self.id, cells, f"{name}.json")

    def finish(self, failed: bool) -> None:
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")

    def stop(self, reason: str) -> None:
        self.summarize({"stopped": reason})
        self.client.set_terminated(self.id, "KILLED")


def require_place_inside(place: str, files: Path, project: str) -> None:
    """Raise UserError if an experiment of the store's database, perhaps a copied one, writes its artifacts elsewhere."""
    url = urlsplit(place)
    is_local = url.scheme in ("", "file")
    if not is_local or not Path(unquote(url.path)).resolve().is_relative_to(files):
        problem = (
            f"tracker.project={project}: its artifacts go to {place}, which is outside of {files}"
        )
        raise UserError(f"{problem}. Set another project.")


def accepted(key: str) -> str:
    """Return a key with `_` for every character that MLflow does not accept in names."""
    return re.sub(r"[^\w/. :-]", "_", key)
