"""Tests of `tracker=trackio`: runs, artifacts and lineage in a database on this machine."""

import json
import sqlite3
from importlib.util import find_spec
from pathlib import Path

import pytest

from stages.store.store import Store
from stages.tracking.tracker import artifact_name
from tests.helpers import command

INSTALLED = find_spec("trackio") is not None


@pytest.mark.skipif(INSTALLED, reason="trackio is installed")
def test_without_its_package_the_error_names_it(tmp_path: Path) -> None:
    ran = command("recipe=tiny", "stage=data", "tracker=trackio", f"outputs={tmp_path}")
    assert ran.returncode == 1
    assert "pip install -e '.[trackio]'" in ran.stderr.strip().splitlines()[-1]


@pytest.mark.skipif(not INSTALLED, reason="needs trackio")
def test_runs_artifacts_and_lineage_are_complete_offline(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    ran = command("recipe=tiny", "stage=dpo", "tracker=trackio", f"outputs={root}")
    assert ran.returncode == 0, ran.stderr
    assert "rackio" not in ran.stdout, "its own messages are not ours"
    manifests = {f"{m['stage']} {m['fingerprint']}": m for _, m in Store(root).manifests()}
    with sqlite3.connect(root / "cache" / "trackio" / "plumbline.db") as database:
        links = database.execute(
            "select run_name, direction, artifacts.name, metadata from run_artifact_links as links "
            "join artifact_versions as versions on versions.id = artifact_version_id "
            "join artifacts on artifacts.id = artifact_id"
        ).fetchall()
        configs = dict(database.execute("select run_name, config from configs").fetchall())
        steps = database.execute("select count(*) from metrics where run_name like 'dpo %'").fetchone()[0]
    named = [(run, way, f"{name}:{json.loads(content)['digest'][:12]}") for run, way, name, content in links]
    output = {(run, artifact_name(m["stage"], m["fingerprint"], m["digest"])) for run, m in manifests.items()}
    inputs = {
        (run, artifact_name(**input_record)) for run, m in manifests.items() for input_record in m["inputs"].values()
    }
    assert {(run, artifact) for run, way, artifact in named if way == "output"} == output
    assert {(run, artifact) for run, way, artifact in named if way == "input"} == inputs
    assert {run: json.loads(c)["fingerprint"] for run, c in configs.items()} == {
        run: m["fingerprint"] for run, m in manifests.items()
    }
    (dpo,) = [m for m in manifests.values() if m["stage"] == "dpo"]
    assert steps > dpo["metrics"]["steps"]
