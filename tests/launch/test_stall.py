"""Tests of what the agent says about processes that wait for each other."""

import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from stages.config.installation import ROOT
from stages.launch import job_file
from stages.store.workspace import SCRATCH
from tests.launch import waiting

PLACE = r"\w+ \(torch/distributed/distributed_c10d\.py:\d+\).*run \(tests/launch/waiting\.py:\d+\)"


def run_two(
    folder: Path, cfg: waiting.Waiting, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the stage in two workers under an agent."""
    (folder / SCRATCH).mkdir(parents=True)
    launch = {"processes": 2, "nodes": 1, "rendezvous": None}
    job = {
        "stage": waiting.__name__,
        "block": [waiting.__name__, waiting.Waiting.__name__],
        "config": asdict(cfg),
        "inputs": {},
        "sources": {},
        "out": str(folder),
        "calls": str(folder),
        "launch": launch,
        "divides": False,
    }
    job_file.write_job(folder / SCRATCH, job)
    command = [
        sys.executable,
        "-m",
        "stages.launch.agent",
        str(folder / SCRATCH / job_file.JOB),
        "0",
    ]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# of two processes, one must be the first to wait: on a busy machine it may not be
@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_a_stall_names_the_places_and_ends_with_them(stopped: bool, tmp_path: Path) -> None:
    cfg = waiting.Waiting(stopped, seconds=600.0, trainer={"ddp_timeout": 20})
    ran = run_two(tmp_path, cfg)
    assert ran.returncode != 0
    other = (
        r"no answer \(the process is stopped"
        if stopped
        else r"fall_asleep \(tests/launch/waiting\.py:\d+\)"
    )
    message = re.search(
        rf"no process has moved on for (\d+) s, since step 2\. (?=.*Rank 0: {PLACE})(?=.*Rank 1: {other}).*",
        ran.stderr,
    )
    assert message, ran.stderr
    assert 0.1 * 20 <= int(message[1]) < 20
    error = job_file.failure_of(tmp_path / SCRATCH, ran.returncode)
    assert str(error) == message[0]
    settings = {(tmp_path / f"allocator-{rank}").read_text() for rank in (0, 1)}
    assert settings == {os.environ.get("PYTORCH_ALLOC_CONF", "expandable_segments:True")}
