"""The sections of the report on a model that was trained elsewhere: what was found, key by key, and both side by side. Or
the whole report, if the examination has run no model."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.config.installation import program
from stages.config.override_text import overrides
from stages.config.schema import Report
from stages.evaluation.results import Results
from stages.extras.examine.differences import load_differences
from stages.pages.environment import environment
from stages.pages.extra_sections import Sections
from stages.pages.glossary import TEXTS
from stages.store.manifest import Manifest, manifest_of
from stages.store.sealed_json import load_json, require_keys
from stages.store.workspace import StageDir


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


def write_page(cfg: Report, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `report.html`, and say what preferences would show."""
    diff = inputs["diff"]
    folders = load_differences(diff)
    checks = TEXTS["checks_of_answers"]
    command = command_with_preferences(manifest_of(diff))
    html = (
        environment()
        .get_template("folders.html.jinja")
        .render(
            folders=folders,
            sentence=folders["sentence"],
            left_out=cfg.left_out,
            command=command,
            level_headings=TEXTS["levels"],
            checks=checks,
        )
    )
    (out / "report.html").write_text(html, encoding="utf-8")
    if not cfg.left_out:
        out.inform(f"With pairs that were held out, {command} also tells {'; '.join(checks)}.")
    return {"bytes": len(html.encode()), "summary": folders["sentence"]}


def command_with_preferences(diff: Manifest) -> str:
    """Return the command that examines the first model of a comparison of folders with preferences."""
    config = diff["config"]
    model = config["models"][0]
    settings = {
        "stage": "examine",
        "examine.before": config["before"]["path"],
        "examine.model": model.get("adapter") or model["path"],
        "label.path": "FILE",
    }
    return f"{shlex.join(program())} {overrides(settings)}"
