"""Keep docs/tutorials/quickstart.ipynb equal to the tutorial "First run", with the output of its commands.

`python -m tests.docs.test_quickstart` runs every command of the tutorial and writes the notebook.
"""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.config.installation import ROOT
from stages.store.sealed_json import OUTPUTS
from tests.helpers import command

TUTORIAL = ROOT / "docs" / "tutorials" / "first-run.md"
NOTEBOOK = TUTORIAL.with_name("quickstart.ipynb")
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "COLUMNS": "110", "TQDM_DISABLE": "1"}
# Fingerprints, times, and figures of a processor, which differ in their last digits
FINGERPRINT = re.compile(r"\b[0-9a-f]{12}\b")
FIGURE = re.compile(r"[-−+]?\d[\d,]*\.\d+(e[-+]?\d+)?%?|\b\d+(?= s\b)")
# The forecast, which a command prints if it takes longer than some seconds
FORECAST = re.compile(r"^The whole run: .*\n", re.MULTILINE)
TRACKED = re.compile(r"^W&B .*\n", re.MULTILINE)
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def cells() -> Iterator[tuple[str, str]]:
    """List the cells of the tutorial as (markdown, sh or python; source)."""
    text = TUTORIAL.read_text(encoding="utf-8")
    parts = BLOCK.split(text)
    for prose, language, code in zip(
        parts[::3], [*parts[1::3], ""], [*parts[2::3], ""], strict=True
    ):
        if prose.strip():
            yield "markdown", prose.strip()
        if code:
            yield language, code.strip()


def output_of(language: str, source: str, folder: Path) -> str:
    """Run a cell in a folder and return what it prints.

    Raises:
        AssertionError: if a command fails.
    """
    if language == "python":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.chdir(folder):
            exec(compile(source, TUTORIAL.name, "exec"), {})  # the tutorial's own lines
        return printed.getvalue()
    _, program, *arguments = shlex.split(source)
    environment = os.environ | ENVIRONMENT
    environment.pop(OUTPUTS, None)  # the tutorial's store is in its folder
    options: dict[str, Any] = {"cwd": folder, "env": environment}
    if program == "run.py":
        ran = command(*arguments, **options)
    else:
        line = [sys.executable, program, *arguments]
        ran = subprocess.run(line, capture_output=True, text=True, check=False, **options)
    assert ran.returncode == 0, ran.stderr
    return FORECAST.sub("", ran.stdout + ran.stderr).replace(str(folder), ".")


def notebook(outputs: list[str]) -> dict[str, Any]:
    """Return the notebook of the tutorial (nbformat 4.5) with the output of each code cell."""
    notebook_cells, remaining = [], iter(outputs)
    for number, (kind, source) in enumerate(cells()):
        cell: dict[str, Any] = {
            "id": f"cell-{number}",
            "metadata": {},
            "source": f"!{source}" if kind == "sh" else source,
        }
        if kind == "markdown":
            notebook_cells.append(cell | {"cell_type": "markdown"})
            continue
        stream = {"output_type": "stream", "name": "stdout", "text": next(remaining)}
        notebook_cells.append(
            cell | {"cell_type": "code", "execution_count": None, "outputs": [stream]}
        )
    return {
        "cells": notebook_cells,
        "metadata": {"kernelspec": KERNEL},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def comparable(output: str) -> list[str]:
    """Return the lines of an output without fingerprints, times and figures, and without the widths of columns."""
    without_figures = FIGURE.sub("#", FINGERPRINT.sub("#", output))
    return [" ".join(line.split()) for line in without_figures.strip().splitlines()]


def stored_outputs() -> list[str]:
    cells_of_notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells_of_notebook if cell["cell_type"] == "code"]
    return [cell["outputs"][0]["text"] for cell in code]


def test_the_notebook_has_the_text_and_the_commands_of_the_tutorial() -> None:
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert stored == notebook(stored_outputs())


@pytest.mark.extra("chat")
def test_the_first_outputs_of_the_notebook_are_those_of_the_same_run(
    built: Path, tmp_path: Path
) -> None:
    """The shared store is built by the tutorial's first command."""
    printed = json.loads(built.with_name("built.json").read_text())["stdout"]
    printed = printed.replace(
        " outputs=outputs", ""
    )  # the tutorial's store is where it is by default
    first, *others = stored_outputs()
    printed = FORECAST.sub("", printed)
    first = TRACKED.sub("", first)  # the shared store is built without a tracker
    (tmp_path / "outputs").symlink_to(built)
    results = json.loads((tmp_path / "outputs/latest/eval/results.json").read_text())
    [python] = [source for kind, source in cells() if kind == "python"]
    outputs = [
        printed,
        json.dumps(results, indent=4),
        output_of("python", python, tmp_path),
    ]
    for output, stored in zip(outputs, [first, *others], strict=False):
        assert comparable(output) == comparable(stored), "python -m tests.docs.test_quickstart"


@pytest.mark.slow
def test_every_command_of_the_tutorial_prints_what_the_notebook_shows(tmp_path: Path) -> None:
    outputs = [output_of(kind, source, tmp_path) for kind, source in cells() if kind != "markdown"]
    assert [*map(comparable, outputs)] == [*map(comparable, stored_outputs())]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        texts = [
            output_of(kind, source, Path(scratch)) for kind, source in cells() if kind != "markdown"
        ]
    NOTEBOOK.write_text(
        json.dumps(notebook(texts), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
