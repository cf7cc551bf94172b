"""Tests of `stage=sync` and of online runs, with a server on 127.0.0.1 that speaks W&B's protocol."""

import base64
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from stages.store.store import Store
from tests.helpers import command
from tests.tracking.wandb_server import ENTITY, WandbServer

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def server() -> Iterator[WandbServer]:
    running = WandbServer()
    yield running
    running.close()


UP_TO_PAIRS = ("base", "data", "sft", "sample", "label", "pairs")


@pytest.fixture
def root(tracked: Path, tmp_path: Path) -> Path:
    """A store with all nodes up to the pairs, tracked offline."""
    root = shutil.copytree(tracked, tmp_path / "outputs", symlinks=True)
    for run, manifest in manifests(root).items():
        if manifest["stage"] not in UP_TO_PAIRS:
            shutil.rmtree(root / manifest["stage"] / manifest["fingerprint"])
            shutil.rmtree(next(root.glob(f"cache/wandb/offline-run-*-{run}")))
    return root


def run(root: Path, server: WandbServer, *arguments: str) -> CompletedProcess[str]:
    """Run a command with a key for this server."""
    environment = {**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
    return command("recipe=tiny", f"outputs={root}", *arguments, env=environment)


def manifests(root: Path) -> dict[str, dict[str, Any]]:
    """Return the manifests by the W&B run that made the node."""
    return {
        m["attempts"][-1]["wandb_run"]: m
        for _, m in Store(root).manifests()
        if m["attempts"][-1]["wandb_run"]
    }


def writes(server: WandbServer) -> Counter[str]:
    """Count the mutations that the server received, by name."""
    names = Counter[str]()
    for _, path, body, _ in server.requests:
        if path == "/graphql":
            names.update(re.findall(r"mutation (\w+)", body.decode()))
    return names


@pytest.mark.slow
def test_offline_runs_are_sent_once_and_nothing_with_the_key(
    root: Path, server: WandbServer
) -> None:
    ran = run(root, server, "stage=sync")
    assert ran.returncode == 0, ran.stderr
    assert f"{ENTITY}/plumbline: {len(manifests(root))} runs sent." in ran.stdout + ran.stderr
    assert set(server.runs) == set(manifests(root))
    for name, manifest in manifests(root).items():
        (artifact,) = server.logged_by(name)
        contents = server.manifests[artifact["id"]]["contents"]
        assert {f: e["digest"] for f, e in contents.items()} == {
            f: e["sha256"] for f, e in manifest["files"].items()
        }
    assert {manifest["stage"] for manifest in manifests(root).values()} == {*UP_TO_PAIRS}

    written = writes(server)
    assert run(root, server, "stage=sync").returncode == 0
    assert writes(server) == written

    assert run(root, server, "stage=pairs", "rebuild=pairs").returncode == 0
    assert len(server.runs) == len(UP_TO_PAIRS) + 1, "one of them online"
    encoded = base64.b64encode(f"api:{KEY}".encode())
    for _, path, body, headers in server.requests:
        assert KEY.encode() not in body, path
        assert KEY not in str({k: v for k, v in headers.items() if k != "Authorization"}), path
    assert any(
        headers.get("Authorization", "").endswith(encoded.decode())
        for *_, headers in server.requests
    )
    for file in root.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file
            assert encoded not in file.read_bytes(), file


@pytest.mark.slow
def test_a_run_that_was_not_taken_is_sent_the_next_time(root: Path, server: WandbServer) -> None:
    (refused,) = [name for name, manifest in manifests(root).items() if manifest["stage"] == "data"]
    server.refused = {refused}
    ran = run(root, server, "stage=sync")
    assert ran.returncode == 1
    assert f"W&B refused 1 runs, {refused} " in ran.stderr
    assert set(server.runs) == set(manifests(root)) - {refused}

    server.refused = set()
    server.requests.clear()
    ran = run(root, server, "stage=sync")
    assert ran.returncode == 0, ran.stderr
    assert writes(server)["CreateArtifact"] == 1
    assert set(server.runs) == set(manifests(root))


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_told_in_one_line(root: Path) -> None:
    closed = WandbServer()
    closed.close()
    ran = run(root, closed, "stage=sync")
    assert ran.returncode == 1
    assert "error: stage=sync: W&B cannot be" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list(root.rglob("*.synced"))
