"""Read every file of docs/examples with the project's own readers, and run the command that the pages begin with."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from stages.config.installation import ROOT
from stages.formats.column_mapping import Purpose
from stages.preflight import constraints
from tests.formats.reading import read
from tests.helpers import settings

EXAMPLES = ROOT / "docs" / "examples"
ROWS = 20
PURPOSES = {
    "candidates": Purpose.candidates,
    "comparisons": Purpose.preferences,
    "completions": Purpose.preferences,
    "demonstrations": Purpose.answers,
    "documents": Purpose.answers,
    "instructions": Purpose.answers,
    "preferences": Purpose.preferences,
    "prompts": Purpose.prompts,
    "ratings": Purpose.preferences,
    "reviews": Purpose.answers,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "reviews": {"task": "sentiment", "labels": {0: "negative", 1: "positive"}}
}


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_command_of_a_recipe_composes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "find_spec", lambda package: package)  # bitsandbytes
    (command,) = re.findall(r"^#   command: .*python run\.py (.*)$", file.read_text(), re.MULTILINE)
    typed = shlex.split(command)
    assert typed[0] == f"recipe={file.relative_to(ROOT)}"
    constraints.validate_config(settings(*typed))


def test_every_example_has_a_purpose() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.jsonl")} == PURPOSES.keys()


@pytest.mark.parametrize("name", PURPOSES)
def test_every_row_of_an_example_is_usable(name: str) -> None:
    report = read(EXAMPLES / f"{name}.jsonl", PURPOSES[name], **SETTINGS.get(name, {}))
    assert (report.rows, len(report.parsed), report.bad_rows, report.left_out) == (
        ROWS,
        ROWS,
        [],
        0,
    )
    assert not report.unused_columns
