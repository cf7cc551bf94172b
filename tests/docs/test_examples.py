"""Read every file of docs/examples with the project's own readers, and run the command that the pages begin with."""

from typing import Any

import pytest

from stages.config.installation import ROOT
from stages.formats.column_mapping import Purpose
from tests.formats.reading import read

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
