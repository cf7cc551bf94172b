"""The sections of the report on a model that was trained elsewhere: what was found, key by key, and both side by side."""

from collections.abc import Mapping
from pathlib import Path

from stages.evaluation.results import Results
from stages.extras.examine.differences import load_differences
from stages.pages.extra_sections import Sections
from stages.pages.glossary import TEXTS
from stages.store.sealed_json import load_json, require_keys


def read_sections(inputs: Mapping[str, Path], results: Results, note: str) -> Sections:
    """Return the sections of an examination; none if the run examined no model."""
    sections = Sections()
    if "diff" in inputs:
        folders = load_differences(inputs["diff"])
        sections.values |= {"folders": folders, "level_headings": TEXTS["levels"]}
        sections.sentences["folders"] = f"{folders['sentence']}."
    if "examine" in inputs:
        file = inputs["examine"] / "examination.json"
        examined = load_json(file, require_keys("faults", "facts", "rows"))
        sections.values["examined"] = examined
        sections.opening = f"{examined['sentence']}. "
        sections.sentences["examined"] = sections.opening
        if examined["findings"]:
            sections.first.append("faults")
    return sections
