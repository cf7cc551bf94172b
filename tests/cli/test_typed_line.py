"""The command line is read once, into one value that is handed on."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from stages.cli import typed_line
from tests.helpers import TINY, inside


def test_a_run_reads_its_command_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = list[tuple[str, ...]]()
    read_values = typed_line.read_values

    def note_and_read(words: Sequence[str]) -> dict[str, str]:
        lines.append(tuple(words))
        return read_values(words)

    monkeypatch.setattr(typed_line, "read_values", note_and_read)
    arguments = ("stage=plan", *TINY, f"outputs={tmp_path}")
    assert inside(*arguments).returncode == 0
    of_job = lines[1:]
    assert lines[0] == arguments
    assert len(of_job) == 1, "what Hydra applies in this job"


def test_a_job_of_a_sweep_has_its_own_values() -> None:
    typed = typed_line.read_line(("-m", "dpo.beta=0.1,0.2", "stage=dpo"))
    job = typed_line.job_line(typed, ["dpo.beta=0.2", "stage=dpo", "recipe=none"])
    assert typed.is_sweep
    assert job.values == {"dpo.beta": "0.2", "stage": "dpo"}
    assert job.settled["recipe"] == "none"
    assert job.with_overrides(["seed=3"]).settled["seed"] == "3"
