"""Tests of stage versions: a change in a stage's source must be recorded, with or without a new version.

`python -m tests.pipeline.test_versions` rewrites the record, `stages/store/stage_sources.json`: run it after raising a
stage's number in `STAGES` (stages/config/stage_table.py), to wave a change through that makes the same thing, and
after any other change of the files in the record.
"""

import json
from fnmatch import fnmatchcase
from typing import Any

from stages.config.installation import PACKAGE
from stages.config.stage_table import STAGES
from stages.store.stage_sources import (
    EXTRAS,
    LOADED_BY_NAME,
    NOTHING_RECORDED,
    RECORD,
    Sources,
    file_of,
)

COMMAND = "python -m tests.pipeline.test_versions"
# Files that belong to no stage, by their beginning, with the reason
OF_NO_STAGE = {
    "cli/": "composes settings, which the fingerprints hold",
    "commands/": "reads finished nodes, and builds none",
    "config/renamed.py": "refuses words of earlier versions",
    "config/trainers.py": "refuses settings",
    "extras/": "reads finished nodes, builds none, and shows a run",
    "labelers/rubrics/": "the label node's settings hold a rubric's digest",
    "pages/live.py": "shows a run",
    "pages/runs.py": "lists the runs",
    "pipeline/": "wires nodes, whose settings and inputs the fingerprints hold",
    "preflight/": "refuses runs",
    "store/mirror.py": "shares nodes",
    "store/node.py": "computes the fingerprints",
    "store/source_parts.py": "computes the digests",
    "store/store.py": "keeps nodes",
    "store/text_lengths.py": "describes published nodes",
    "tasks/toy_preferences.jsonl": "the label node's settings hold its digest",
    "tracking/": "shows a run",
}


def current() -> dict[str, Any]:
    """Return the record of the package as it is, with every file parsed."""
    versions = {name: stage.version for name, stage in STAGES.items()}
    return Sources(record=NOTHING_RECORDED).as_record(versions)


def stages_by_file() -> dict[str, list[str]]:
    """Return by file the stages that it belongs to."""
    sources = Sources()
    stages = {file: list[str]() for file in sources.signatures}
    for stage in STAGES:
        for file in {file_of(ref) for ref in sources.source(stage)}:
            stages[file].append(stage)
    return stages


def test_every_changed_stage_was_raised_or_waved_through() -> None:
    recorded = json.loads((PACKAGE / RECORD).read_text())
    now = current()
    changed = [name for name in STAGES if now["stages"][name] != recorded["stages"].get(name)]
    assert not changed, (
        f"the source of {', '.join(changed)} changed. If such a stage makes something else now, raise its number in "
        f"stage_table.py; then, or if it makes the same, run: {COMMAND}"
    )
    files = recorded["files"]
    removed = [file for file in files if file.startswith(EXTRAS) and not (PACKAGE / file).exists()]
    if removed:  # only a removed extra uses the files that are not reached
        recorded["files"] = {file: files[file] for file in now["files"]}
    assert now == recorded, f"no stage changed, but the record is old. Run: {COMMAND}"


def test_every_file_belongs_to_a_stage_or_has_a_reason_not_to() -> None:
    stages = stages_by_file()
    without = {file for file, names in stages.items() if not names}
    allowed = {file for file in stages if file.startswith((*OF_NO_STAGE,))}
    packages = {file for file in stages if file.endswith("__init__.py")}
    of_removed_extras = json.loads((PACKAGE / RECORD).read_text())["files"].keys()
    assert not without - allowed - packages - of_removed_extras
    unused = {start for start in OF_NO_STAGE if not any(file.startswith(start) for file in without)}
    assert not unused


def test_every_file_in_these_tables_is_there() -> None:
    files = Sources().signatures
    assert LOADED_BY_NAME.keys() <= files.keys()
    of_core = {pattern for pattern in LOADED_BY_NAME.values() if not pattern.startswith(EXTRAS)}
    for pattern in of_core:
        assert any(fnmatchcase(file, pattern) for file in files), pattern


def test_a_part_counts_as_source_of_the_stages_that_use_it() -> None:
    stages = stages_by_file()
    assert {"sample", "answer", "grpo"} <= {*stages["samplers/hf.py"]}
    assert {"sample", "answer", "grpo"} <= {*stages["samplers/vllm_driver.py"]}
    assert {"label", "grpo"} <= {*stages["labelers/verifier.py"]}
    assert "data" in stages["tasks/families/editing.yaml"]
    assert "data" in stages["tasks/constraints/composition.py"]
    assert "report" in stages["pages/glossary.yaml"]
    assert "source" in stages["formats/tasks/intent.yaml"]
    assert "sft" in stages["models/templates/chatml.jinja"]
    assert {*stages["launch/job_file.py"]} == {*STAGES}
    assert {*stages["hardware/process.yaml"]} == {*STAGES}


if __name__ == "__main__":
    (PACKAGE / RECORD).write_text(json.dumps(current(), indent=1) + "\n")
