"""W&B, for real and offline: a run per executed stage, read back from its file. It never asks and keeps no secret."""

import json
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from tests.helpers import command

SECRET = "0123456789abcdef" * 2 + "01234567"


def records(file: Path) -> list[Any]:
    """The records of a `.wandb` file: a 7-byte header, then LevelDB log blocks of 32 KiB."""
    content, found, partial, place = file.read_bytes(), [], b"", 7
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
            found.append(record)
            partial = b""
    return found


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain that was tracked offline, with a secret in the environment that is none of W&B's business."""
    root = tmp_path_factory.mktemp("tracked")
    environment = {**os.environ, "HF_TOKEN": SECRET, "HOME": str(root / "home")}
    (root / "home").mkdir()
    ran = command("recipe=tiny", "tracker=wandb", f"outputs={root / 'outputs'}", stdin=-3, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert "WANDB_API_KEY" not in ran.stderr + ran.stdout
    return root / "outputs"


def test_every_executed_stage_is_a_run_with_its_configuration_and_curves(tracked: Path) -> None:
    files = list((tracked / "cache" / "wandb").glob("offline-run-*/*.wandb"))
    manifests = [json.loads(p.read_text()) for p in tracked.glob("[a-z]*/????????????/manifest.json")]
    stages = Counter[str]()
    for file in files:
        found = records(file)
        run = next(r.run for r in found if r.HasField("run"))
        stages[run.job_type] += 1
        manifest = next(m for m in manifests if m["attempts"][-1]["wandb_run"] == run.run_id)
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["fingerprint"] == manifest["fingerprint"]
        assert run.project == "plumbline"
        if run.job_type == "dpo":
            assert config["beta"] == 0.1
            keys = {item.key or "/".join(item.nested_key) for r in found for item in r.history.item}
            assert {"loss", "rewards/margins", "eval_rewards/accuracies"} <= keys
    assert stages == Counter(m["stage"] for m in manifests)


def test_no_secret_and_no_code_is_kept(tracked: Path) -> None:
    for file in tracked.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


def test_nothing_is_written_outside_the_store(tracked: Path) -> None:
    home = tracked.parent / "home"
    assert not [p for p in home.rglob("*") if p.is_file()]
