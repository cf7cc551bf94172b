"""The section of the report on the folders of models that were trained elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.evaluation.results import Results
from stages.pages.extra_sections import Sections
from stages.pages.glossary import TEXTS
from stages.store.sealed_json import load_json, require_keys


def read_sections(inputs: Mapping[str, Path], results: Results, note: str) -> Sections:
    """Return the comparison of the folders, if there is one."""
    if "diff" not in inputs:
        return Sections()
    folders = load_differences(inputs["diff"])
    values = {"folders": folders, "level_headings": TEXTS["levels"]}
    return Sections(values, {"folders": f"{folders['sentence']}."})


def load_differences(diff: Path) -> dict[str, Any]:
    """Return the table of the node that compares the folders."""
    differences: dict[str, Any] = load_json(
        diff / "differences.json", require_keys("sentence", "titles", "rows")
    )
    return differences
