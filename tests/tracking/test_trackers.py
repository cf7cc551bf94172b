"""Tests of what each tracker keeps of the same runs, read back from its own files."""

import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stages.config.blocks.processes import TRACKERS
from stages.store.workspace import read_curves
from stages.tracking.tables import read_tables
from stages.tracking.wandb import run_id
from tests.helpers import INSTALLED, ROOT, SECRET, command
from tests.tracking.test_tracking import records
from tests.tracking.tracked_run import Curves, TrackedRun, as_cells, curves_of


def of_wandb(root: Path, run: str) -> TrackedRun:
    (folder,) = root.glob(f"cache/wandb/offline-run-*-{run}")
    (file,) = folder.glob("*.wandb")
    read = records(file)
    (first,) = [r.run for r in read if r.HasField("run")]
    tables = {
        path.name.partition("_")[0]: as_cells(json.loads(path.read_text())["data"])
        for path in folder.glob("files/media/table/*.table.json")
    }
    points = []
    for record in read:
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            value = json.loads(item.value_json)
            # W&B has times and the sizes of tables of its own
            of_wandb_itself = name.startswith("_") or name.partition("/")[0] in tables
            if isinstance(value, int | float) and not of_wandb_itself:
                points.append((record.history.step.num, name, value))
    return TrackedRun(curves_of(points), tables, first.run_group)


def read_run(tracker: str, root: Path, run: str) -> TrackedRun:
    """Return what a tracker has of a run. Each extra's tests have the reader of its tracker."""
    if tracker == "wandb":
        return of_wandb(root, run)
    reader = importlib.import_module(f"tests.extras.{tracker}.written_runs")
    tracked: TrackedRun = reader.read_run(root, run)
    return tracked


@pytest.mark.parametrize("tracker", TRACKERS)
def test_every_tracker_has_the_same_curves_tables_and_settings(tracked: Path, tracker: str) -> None:
    if tracker not in INSTALLED:
        pytest.skip(f"{tracker} is not installed")
    for stage in ("sft", "label", "pairs", "dpo"):
        (folder,) = [path.parent for path in tracked.glob(f"{stage}/*/manifest.json")]
        manifest = json.loads((folder / "manifest.json").read_text())
        told = read_run(tracker, tracked, manifest["attempts"][-1]["wandb_run"])

        expected = Curves()
        for point in read_curves(folder):
            for name, value in point.items():
                if name != "step" and value is not None:
                    expected.setdefault(name, {})[point["step"]] = value
        assert bool(expected) == (stage in ("sft", "dpo"))
        assert set(told.curves) == set(expected)
        for name, values in expected.items():
            # TensorBoard's numbers have 32 bits
            assert told.curves[name] == pytest.approx(values, rel=1e-6, abs=1e-9), name

        tables = {name: as_cells(rows) for name, (_, rows) in read_tables(stage, folder).items()}
        assert told.tables == tables != {}

        assert told.group == f"{stage}-{manifest['fingerprint']}"


ATTEMPTS = """
import json, socket, sys
from contextlib import suppress
from pathlib import Path

asked = []
def refuse(self, address, *more):
    if self.family != socket.AF_UNIX and address[0] != "127.0.0.1":
        asked.append(str(address))
        raise OSError("no network")
    return connect(self, address, *more)
def no_address(host, *more, **named):
    asked.append(str(host))
    raise OSError("no network")
connect, socket.socket.connect, socket.getaddrinfo = socket.socket.connect, refuse, no_address

from stages.store.node import Node
from stages.tracking.tracker import track
from tests.helpers import INSTALLED, settings

cfg = settings(f"tracker=[{','.join(INSTALLED)}]")
for end in (KeyboardInterrupt, None):
    with suppress(KeyboardInterrupt), track(cfg.tracker, Node("dpo", 1, cfg.dpo), Path(sys.argv[1])) as runs:
        assert [*runs.runs] == INSTALLED
        runs.log({"loss": 1.0}, 1)
        if end:
            raise end
sys.stdout.write(json.dumps(asked))
"""


@pytest.mark.extended
def test_a_stopped_attempt_and_the_next_are_one_group_and_nobody_is_asked(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, str(tmp_path)],
        cwd=ROOT,
        # of a user, not of a test, where MLflow would tell nobody either
        env={"PATH": os.environ["PATH"], "HF_TOKEN": SECRET, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "[]"
    first, second = (run_id(path) for path in tmp_path.glob("cache/wandb/offline-run-*"))
    node = first.rpartition("-")[0]
    for tracker in INSTALLED:
        for run in (first, second):
            told = read_run(tracker, tmp_path, run)
            assert (told.group, told.curves["loss"]) == (node, {1: 1.0}), tracker


@pytest.mark.extended
def test_a_runs_last_lines_name_the_commands_that_open_what_was_tracked(tmp_path: Path) -> None:
    """W&B is offline: it has no key."""
    store = tmp_path / "a store"
    names = [name for name in ("wandb", "tensorboard") if name in INSTALLED]
    line = (
        "recipe=tiny",
        "stage=data",
        f"tracker=[{','.join(names)}]",
        f"outputs={store}",
        "--json",
    )
    openings = json.loads(command(*line).stdout)["result"]["trackers"]
    for name, opening in zip(names, openings, strict=True):
        words = shlex.split(opening)
        folder = store / "cache" / name
        if name == "wandb":
            assert words[-3:-1] == ["wandb", "sync"]
            assert [*folder.glob(Path(words[-1]).name)], "the pattern means its runs"
            assert Path(words[-1]).parent == folder
        else:
            assert words[-3:] == ["tensorboard", "--logdir", str(folder)]
            assert [*folder.rglob("*tfevents*")]
