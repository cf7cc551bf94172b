"""The line at the start where an installed library lies outside the ranges of pyproject.toml; on real metadata."""

import logging
import subprocess
from pathlib import Path

import pytest

from stages.config.installation import checkout_project
from stages.hardware import process
from tests.helpers import TINY, inside


def installed(folder: Path, name: str, version: str, *needs: str) -> None:
    """Write the metadata that pip stores of an installed distribution."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {n}" for n in needs),
    ]
    (info / "METADATA").write_text(
        "\n".join([*lines, "", "Version: of the description, not of the package", ""])
    )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place that is looked at before the environment's own packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    process.warn_of_versions.cache_clear()
    return folder


def test_every_library_outside_its_range_is_named_in_one_line_once(
    site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    installed(site, "trl", "9.9.9")
    installed(site, "peft", "0.1")
    with caplog.at_level(logging.WARNING):
        process.warn_of_versions()
        process.warn_of_versions()
    [line] = caplog.messages
    ranges = {
        requirement.split(">")[0]: requirement for requirement in checkout_project()["dependencies"]
    }
    assert "trl" in ranges and "\n" not in line
    assert "trl 9.9.9 (known: >=" in line
    assert "peft 0.1 (known: >=" in line
    assert "docs/reference/upgrading.md" in line
    for bound in ranges["trl"].removeprefix("trl").split(","):
        assert bound in line, "the range is that of pyproject.toml"


@pytest.mark.extended
def test_a_command_that_builds_says_it_and_one_that_does_not_stays_silent(
    site: Path, tmp_path: Path
) -> None:
    installed(site, "trl", "9.9.9")
    runs = list[subprocess.CompletedProcess[str]]()
    for stage in ("data", "plan"):
        process.warn_of_versions.cache_clear()  # as in a new process
        runs.append(inside(*TINY, f"stage={stage}", f"outputs={tmp_path}"))
    built, planned = runs
    assert built.returncode == planned.returncode == 0
    assert (built.stdout + built.stderr).count("trl 9.9.9 (known: ") == 1
    assert "9.9.9" not in planned.stdout + planned.stderr
