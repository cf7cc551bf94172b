"""Tests of real offline W&B runs, read from their files: one per executed stage, without questions or secrets."""

import json
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from stages.config.errors import LimitReached
from stages.store.node import Node
from stages.tracking.tracker import track
from tests.helpers import SECRET, settings


def records(file: Path) -> list[Any]:
    """Yield the records of a `.wandb` file, which has a 7-byte header and LevelDB log blocks of 32 KiB."""
    content = file.read_bytes()
    records = []
    partial = b""
    place = 7
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        partial += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(partial)
            records.append(record)
            partial = b""
    return records


@dataclass
class Tracked:
    """A run from its `.wandb` file, with the manifest of the node that it built."""

    folder: Path
    run: Any
    config: dict[str, Any]
    artifacts: list[Any]  # those of nodes; W&B makes one of every table too
    history: set[str]
    manifest: dict[str, Any]


def runs(root: Path) -> list[Tracked]:
    manifests = [json.loads(p.read_text()) for p in root.glob("[a-z]*/????????????/manifest.json")]
    by_run = {manifest["attempts"][-1]["wandb_run"]: manifest for manifest in manifests}
    runs_found = []
    for file in (root / "cache" / "wandb").glob("offline-run-*/*.wandb"):
        read = records(file)
        run = next(r.run for r in read if r.HasField("run"))
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        artifacts = [
            r.artifact for r in read if r.HasField("artifact") and r.artifact.type != "run_table"
        ]
        history = {item.key or "/".join(item.nested_key) for r in read for item in r.history.item}
        runs_found.append(
            Tracked(file.parent, run, config, artifacts, history, by_run.pop(run.run_id))
        )
    assert not by_run, "a node without a run"
    return runs_found


def test_every_executed_stage_is_a_run_with_its_configuration_and_curves(tracked: Path) -> None:
    run_by_stage = {run.manifest["stage"]: run for run in runs(tracked)}
    manifests = tracked.glob("[a-z]*/????????????/manifest.json")
    built = {path.parent.parent.name for path in manifests}
    assert run_by_stage.keys() == built
    for run in run_by_stage.values():
        assert run.config["fingerprint"] == run.manifest["fingerprint"]
        assert (run.run.project, run.run.job_type) == ("plumbline", run.manifest["stage"])
    assert run_by_stage["dpo"].config["beta"] == run_by_stage["dpo"].manifest["config"]["beta"]
    assert {"loss", "rewards/margins", "eval_rewards/accuracies"} <= run_by_stage["dpo"].history


def test_every_run_logs_its_node_by_reference_without_reading_it_again(tracked: Path) -> None:
    for run in runs(tracked):
        (artifact,) = run.artifacts
        manifest = run.manifest
        assert artifact.name == f"{manifest['stage']}-{manifest['fingerprint']}"
        assert artifact.type == manifest["stage"]
        assert set(artifact.aliases) == {manifest["fingerprint"], manifest["digest"][:12], "latest"}
        assert json.loads(artifact.metadata)["metrics"] == manifest["metrics"]
        logged = {entry.path: (entry.digest, entry.size) for entry in artifact.manifest.contents}
        files = manifest["files"].items()
        assert logged == {name: (file["sha256"], file["bytes"]) for name, file in files}
        folder = tracked / manifest["stage"] / manifest["fingerprint"]
        for entry in artifact.manifest.contents:
            assert entry.ref == (folder / entry.path).as_uri()


def test_a_tracker_that_cannot_start_stops_no_stage(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "wandb").touch()  # where W&B's folder belongs
    with track(settings("tracker=wandb").tracker, Node("dpo", 1, settings().dpo), tmp_path) as run:
        run.log({"loss": 1.0}, 0)
    assert run.wandb_id is None


@pytest.mark.extended
def test_the_run_of_an_attempt_that_stops_at_a_limit_has_not_failed(tmp_path: Path) -> None:
    tracker = settings("recipe=tiny", "tracker=wandb").tracker
    node = Node("dpo", 1, settings().dpo)
    reason = "limits.minutes=5: reached in sft at step 3 of 9."
    with pytest.raises(LimitReached), track(tracker, node, tmp_path):
        raise LimitReached(reason, "limits.minutes=10")
    [file] = tmp_path.glob("cache/wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    read = records(file)
    # W&B's own process writes the end of the file
    while not any(r.HasField("exit") for r in read) and time.monotonic() < deadline:
        time.sleep(0.1)
        read = records(file)
    assert [r.exit.exit_code for r in read if r.HasField("exit")] == [0]
    summary = {u.key: u.value_json for r in read for u in r.summary.update}
    assert json.loads(summary["stopped"]) == reason


def test_no_secret_and_no_code_is_kept(tracked: Path) -> None:
    for file in tracked.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


def test_nothing_is_written_outside_the_store(tracked: Path) -> None:
    home = tracked.with_name("tracked-home")
    assert not [p for p in home.rglob("*") if p.is_file()]
