"""The commands that tests expect to be refused: by command, the key that the error names and the exit code.

As a plugin of pytest, this module writes down what the helpers `refused`, `inside` and `command` return.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from stages.config.installation import ROOT
from tests import helpers
from tests.goldens.runs import named_key, without_places

FILE = "PLUMBLINE_REFUSALS"  # the variable with the file to write to
# What differs from run to run: folders of tests and ports
PLACES = [
    (re.compile(r"/[^\s'\"=]*/pytest-of-\w+/pytest-\d+(/popen-gw\d+)?/[\w.-]+"), "TMP"),
    (re.compile(r"(127\.0\.0\.1|localhost|\[::1\]):\d+"), "SERVER"),
    (re.compile(r"\bport=[1-9]\d{3,}"), "port=PORT"),
]


def commands() -> list[str]:
    """Return the commands, which are those of the tests that run."""
    return []


def measure(recorded: Iterable[str]) -> dict[str, Any]:
    """Run all tests that are not slow. Return the outcomes by command, sorted: [key, exit code]."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "refusals.jsonl")
        line = [sys.executable, "-m", "pytest", "-q", "-p", __name__, "-n", "3", "tests"]
        subprocess.run(line, cwd=ROOT, env=os.environ | {FILE: str(file)}, check=False)
        rows = [json.loads(row) for row in file.read_text(encoding="utf-8").splitlines()]
    outcomes: dict[str, Any] = {}
    for command, key, code in rows:
        outcome = outcomes.setdefault(command, [])
        if [key, code] not in outcome:
            outcome.append([key, code])
    return {command: sorted(outcomes[command]) for command in sorted(outcomes)}


def note(arguments: Iterable[object], message: str, code: int) -> None:
    """Append a refusal to the file, as one write, since several processes do so."""
    command = without_folders(" ".join(map(str, arguments)))
    row = json.dumps([command, named_key(without_folders(message)), code], ensure_ascii=False)
    with open(os.environ[FILE], "a", encoding="utf-8") as file:
        file.write(row + "\n")


def without_folders(text: str) -> str:
    text = without_places(text.replace(sys.executable, "PYTHON"))
    for pattern, name in PLACES:
        text = pattern.sub(name, text)
    return text


def pytest_configure(config: pytest.Config) -> None:
    """Replace the helpers before any test module imports them."""
    refused = helpers.refused

    def noted_refusal(*overrides: str) -> str:
        message = refused(*overrides)
        note(overrides, message, 1)
        return message

    helpers.refused = noted_refusal
    for name in ("inside", "command"):
        setattr(helpers, name, noting_failures(getattr(helpers, name)))


def noting_failures(run: Any) -> Any:
    """Return a helper that writes down what ends with an exit code above 0."""

    def noted(*arguments: str, **options: Any) -> Any:
        ran = run(*arguments, **options)
        if ran.returncode > 0:
            lines = (ran.stderr or "").strip().splitlines() or [""]
            note(arguments, lines[-1], ran.returncode)
        return ran

    return noted
