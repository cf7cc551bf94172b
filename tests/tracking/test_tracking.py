"""Tests of real offline W&B runs, read from their files: one per executed stage, without questions or secrets."""

import json
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from wandb.proto import wandb_internal_pb2

from stages.store.node import Node
from stages.store.workspace import read_samples
from stages.tracking.tables import ROWS
from stages.tracking.tracker import artifact_name, track
from tests.helpers import ROOT, SECRET, command, settings


def records(file: Path) -> list[Any]:
    """Yield the records of a `.wandb` file, which has a 7-byte header and LevelDB log blocks of 32 KiB."""
    content, records, partial, place = file.read_bytes(), [], b"", 7
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
    assert set(run_by_stage) == {
        "base",
        "data",
        "sft",
        "sample",
        "label",
        "pairs",
        "reference",
        "dpo",
    } | {
        "answer",
        "eval",
        "report",
    }
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
        assert logged == {
            name: (entry["sha256"], entry["bytes"]) for name, entry in manifest["files"].items()
        }
        for entry in artifact.manifest.contents:
            place = tracked / manifest["stage"] / manifest["fingerprint"] / entry.path
            assert entry.ref == place.as_uri()
            assert place.exists()


def test_the_configurations_of_the_runs_hold_the_lineage(tracked: Path) -> None:
    all_runs = runs(tracked)
    logged = {f"{a.name}:{alias}" for run in all_runs for a in run.artifacts for alias in a.aliases}
    for run in all_runs:
        inputs = run.manifest["inputs"]
        named = {
            role: (i["fingerprint"], i["artifact"]) for role, i in run.config["inputs"].items()
        }
        assert named == {role: (i["fingerprint"], artifact_name(**i)) for role, i in inputs.items()}
        assert {artifact for _, artifact in named.values()} <= logged


DYING = """
import sys
from pathlib import Path
import psutil
from stages.store.node import Node
from stages.tracking.tracker import Runs
from tests.helpers import settings
run = Runs(settings("tracker=wandb").tracker, Node("dpo", 1, settings().dpo), Path(sys.argv[1]))
services = psutil.Process().children(recursive=True)
for service in services:
    service.kill()
    service.wait()
for step in range(3):
    run.log({"loss": 1.0}, step)
run.finish(failed=False)
print(len(services), "killed")
"""


@pytest.mark.slow
def test_a_tracker_that_dies_stops_no_training(tmp_path: Path) -> None:
    """The kernel may kill W&B's own process for want of memory."""
    words = [sys.executable, "-c", DYING, str(tmp_path)]
    # W&B's process of another test would serve this one too
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    ran = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert "killed" in ran.stdout and not ran.stdout.startswith("0 ")
    assert "tracker=wandb failed" in ran.stderr


def test_a_tracker_that_cannot_start_stops_no_stage(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "wandb").touch()  # where W&B's folder belongs
    with track(settings("tracker=wandb").tracker, Node("dpo", 1, settings().dpo), tmp_path) as run:
        run.log({"loss": 1.0}, 0)
    assert run.wandb_id is None


@pytest.mark.extended
def test_a_mode_that_wandb_does_not_know_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("PLUMBLINE_WANDB_MODE", "ofline")
    with track(settings("tracker=wandb").tracker, Node("dpo", 1, settings().dpo), tmp_path) as run:
        assert [*tmp_path.glob(f"cache/wandb/offline-run-*{run.wandb_id}")]


@pytest.mark.parametrize("stage, name", [("label", "candidates"), ("pairs", "pairs")])
def test_some_candidates_and_pairs_are_tables(tracked: Path, stage: str, name: str) -> None:
    (tracked_run,) = [run for run in runs(tracked) if run.manifest["stage"] == stage]
    (file,) = tracked_run.folder.glob(f"files/media/table/{name}_*.table.json")
    table = json.loads(file.read_text())
    folder = tracked / stage / tracked_run.manifest["fingerprint"]
    scored = pq.read_table(
        folder / "judgements.parquet" if stage == "label" else folder / "pairs.parquet"
    ).to_pylist()
    assert len(table["data"]) == min(ROWS, len(scored))
    if stage == "label":
        assert table["columns"] == ["prompt", "completion", "score"]
        texts = {
            c["candidate_id"]: c["text"]
            for c in pq.read_table(folder / "candidates.parquet").to_pylist()
        }
        prompts = {
            p["id"]: p["messages"][-1]["content"]
            for p in pq.read_table(folder / "prompts.parquet").to_pylist()
        }
        expected = [[prompts[j["prompt_id"]], texts[j["candidate_id"]], j["score"]] for j in scored]
    else:
        assert table["columns"] == ["prompt", "chosen", "rejected", "margin"]
        expected = [
            [p[k][-1]["content"] for k in ("prompt", "chosen", "rejected")] + [p["margin"]]
            for p in scored
        ]
    assert table["data"] == expected[:ROWS]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_what_a_model_answered_while_it_was_trained_is_a_table(tracked: Path, stage: str) -> None:
    (tracked_run,) = [run for run in runs(tracked) if run.manifest["stage"] == stage]
    (file,) = tracked_run.folder.glob("files/media/table/samples_*.table.json")
    table, samples = (
        json.loads(file.read_text()),
        read_samples(tracked / stage / tracked_run.manifest["fingerprint"]),
    )
    assert table["columns"] == ["step", "prompt", "before training", "answer"]
    first = {s.id: s.answer for s in samples if s.step == 0}
    assert (
        table["data"]
        == [[s.step, s.prompt[-1]["content"], first[s.id], s.answer] for s in samples]
        != []
    )


@pytest.mark.extended
def test_upload_puts_the_files_themselves_into_the_artifact(tmp_path: Path) -> None:
    ran = command("recipe=tiny", "stage=data", "tracker.upload=true", f"outputs={tmp_path}")
    assert ran.returncode == 0, ran.stderr
    (run,) = runs(tmp_path)
    (artifact,) = run.artifacts
    assert {entry.path for entry in artifact.manifest.contents} == set(run.manifest["files"])
    for entry in artifact.manifest.contents:
        assert not entry.ref
        assert Path(entry.local_path).samefile(
            tmp_path / "data" / run.manifest["fingerprint"] / entry.path
        )


def test_no_secret_and_no_code_is_kept(tracked: Path) -> None:
    for file in tracked.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


def test_nothing_is_written_outside_the_store(tracked: Path) -> None:
    home = tracked.with_name("tracked-home")
    assert not [p for p in home.rglob("*") if p.is_file()]
