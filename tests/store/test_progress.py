"""Tests of progress: lines and no bar in a log, and an estimate from a resume's own rows."""

import subprocess
import sys

import pytest

from stages.config.installation import ROOT
from stages.store.workspace import Progress

SCRIPT = """
import logging, time
from stages.store.workspace import Progress
logging.basicConfig(level=logging.INFO, format="%(message)s")
Progress.SECONDS, Progress.LOGGED_EVERY = 1.0, 0.4
now = 0.0
time.monotonic = lambda: now
with Progress(4000, "likelihood of a policy", "prompt") as progress:
    for i in range(40):
        time.sleep(0.05)  # the terminal's bar has a clock of its own
        now += 0.05
        progress.update(100, note="loss 0.123, eval_loss 0.456, and more than fits into a line of a terminal")
"""


def arguments() -> list[str]:
    return [sys.executable, "-c", SCRIPT]


@pytest.mark.extended
def test_a_log_file_gets_a_line_now_and_then_without_carriage_returns() -> None:
    ran = subprocess.run(arguments(), cwd=ROOT, capture_output=True, text=True, check=True)
    assert "\r" not in ran.stderr + ran.stdout
    lines = ran.stderr.splitlines()
    assert 2 <= len(lines) <= 6, "every 0.4 of 2 seconds, and not every update"
    assert all(line.startswith("likelihood of a policy ") for line in lines)


def test_a_resume_counts_its_own_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress(1000, "sample", "row", done=900)
    now[0] = 20.0
    progress.update(50)
    assert progress.line() == "sample 950/1,000 rows, 2.5/s, 0:20 left"
