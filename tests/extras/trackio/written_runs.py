"""Read a run of trackio back from its database."""

import json
import sqlite3
from pathlib import Path

from tests.tracking.tracked_run import TrackedRun, as_cells, curves_of


def read_run(root: Path, run: str) -> TrackedRun:
    """Return what trackio has of a run in a store."""
    database = sqlite3.connect(root / "cache" / "trackio" / "plumbline.db")
    rows = database.execute("select step, metrics from metrics where run_name = ?", [run])
    items = [(step, *item) for step, of in rows for item in json.loads(of).items()]
    (config,) = database.execute("select config from configs where run_name = ?", [run]).fetchone()
    database.close()
    tables = {
        name: as_cells(row.values() for row in value["_value"])
        for _, name, value in items
        if isinstance(value, dict)
    }
    curves = curves_of(item for item in items if item[1] not in tables)
    return TrackedRun(curves, tables, json.loads(config)["_Group"])
