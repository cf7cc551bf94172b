"""Tests of progress: an estimate from a resume's own rows."""

import pytest

from stages.store.workspace import Progress


def test_a_resume_counts_its_own_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress(1000, "sample", "row", done=900)
    now[0] = 20.0
    progress.update(50)
    assert progress.line() == "sample 950/1,000 rows, 2.5/s, 0:20 left"
