"""Read a run of MLflow back from its database and its artifacts."""

import json
from pathlib import Path

from tests.tracking.tracked_run import TrackedRun, as_cells, curves_of


def read_run(root: Path, run: str) -> TrackedRun:
    """Return what MLflow has of a run in a store."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'cache' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("plumbline").experiment_id
    (found,) = client.search_runs([experiment], f"tags.attempt = '{run}'")
    histories = {
        name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics
    }
    points = [(each.step, name, each.value) for name, of in histories.items() for each in of]
    folder = root / "cache" / "mlflow" / "artifacts" / found.info.run_id / "artifacts"
    tables = {
        path.stem: as_cells(json.loads(path.read_text())["data"])
        for path in folder.glob("*.json")
        if path.stem != "summary"
    }
    return TrackedRun(curves_of(points), tables, found.data.tags["group"])
