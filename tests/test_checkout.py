"""Tests that no test reads or writes the checkout's own outputs/.

Beside such a store alone can they fail: `.ci/run` builds one first.
"""

import os
from pathlib import Path

import pytest

from stages.config.installation import ROOT
from stages.store.sealed_json import OUTPUTS
from tests.helpers import command, forget_compositions, inside, settings


@pytest.mark.extended
def test_a_test_that_names_no_store_has_an_empty_one() -> None:
    here = (ROOT / "outputs").resolve()
    assert not Path(settings("recipe=tiny").outputs).resolve().is_relative_to(here)
    for run in (command, inside):
        ran = run("recipe=tiny", "tracker=none", "stage=plan")
        assert ran.returncode == 0, ran.stderr
        assert "to build" in ran.stdout and "cached" not in ran.stdout
        assert "as this stage took here" not in ran.stdout, (
            "nor does a store tell how fast this machine is"
        )


@pytest.mark.extended
def test_the_environment_names_the_store_where_nothing_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OUTPUTS, str(tmp_path / "elsewhere"))
    inside("recipe=tiny", "tracker=none", "stage=plan")
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere"}
    inside("recipe=tiny", "tracker=none", "stage=plan", f"outputs={tmp_path / 'typed'}")
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "typed"}
    monkeypatch.delenv(OUTPUTS)
    forget_compositions()
    assert settings("recipe=tiny").outputs == "outputs"
    forget_compositions()
    ran = command("stage=plan", env={**os.environ, OUTPUTS: ""})
    assert ran.stderr.splitlines()[-1].startswith(f"error: {OUTPUTS} is empty")


def test_no_test_looks_into_the_outputs_of_the_checkout() -> None:
    """Check all tests except benchmarks, which people run on the checkout's store."""
    files = [
        path
        for path in (ROOT / "tests").rglob("*.py")
        if path.parent.name != "bench" and path != Path(__file__)
    ]
    assert [path for path in files if 'ROOT / "outputs"' in path.read_text(encoding="utf-8")] == []
