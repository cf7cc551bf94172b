"""`stage=context`: its commands work, it names every result and exit code, and it is quick."""

import json
import shlex
from pathlib import Path

import pytest

from stages.config.exit_codes import ExitCode, GateCode, meanings
from stages.config.installation import ROOT, arguments_of
from stages.extras.context import command
from stages.preflight import constraints
from tests.docs.test_pages import one_of_each
from tests.helpers import inside, refuse_unread, settings

FILE = ROOT / "docs" / "examples" / "preferences.jsonl"
PAGE = command.run()
LINES = [each.command.replace("=FILE", f"={FILE}") for each in PAGE.commands]


def arguments(line: str) -> list[str]:
    return [word for word in arguments_of(line) if word != "--json"]


@pytest.mark.parametrize("line", LINES, ids=range(1, len(LINES) + 1))
def test_its_commands_compose(line: str) -> None:
    typed = one_of_each(arguments(line))
    cfg = settings(*typed)
    constraints.validate_config(cfg)
    refuse_unread(cfg, typed)


def test_its_commands_are_few_and_those_without_json_have_none() -> None:
    assert len(LINES) == 10
    with_json = [line for line in LINES if line.endswith("--json")]
    stages = {settings(*one_of_each(arguments(line))).stage for line in with_json}
    assert stages == {"audit", "plan", "report", "compare", "gate", "examine"}
    assert all(f"`{each.command}`" in PAGE.page for each in PAGE.commands)


def test_it_names_all_codes_and_formats() -> None:
    assert meanings().keys() == {*ExitCode} | {*GateCode}
    assert {each.code: (each.meaning, each.gate) for each in PAGE.exit_codes} == meanings()
    reference = (ROOT / "docs" / "reference" / "stages-and-files.md").read_text()
    for code, by_command in meanings().items():
        row = f"| {code} | {' | '.join(by_command)} |"
        assert row in reference and row in PAGE.page
    assert all(f"| `{name}` |" in PAGE.page for name in ("chosen_rejected", "compared", "scored"))


def test_it_has_the_formats_and_stages_of_the_reference_by_column() -> None:
    formats = {row["format"]: row["example"] for row in PAGE.files}
    assert json.loads(formats["`compared`"].strip("`"))["winner"] == "a"
    files_by_stage = {row["stage"]: row["files beside the manifest"] for row in PAGE.stages}
    assert "pairs.parquet" in files_by_stage["`pairs`"]
    assert "](" not in json.dumps([PAGE.files, PAGE.stages]), "links lead nowhere in JSON"
    assert all(each.does and each.costs and each.refuses for each in PAGE.commands)


@pytest.mark.slow
def test_its_first_commands_lead_from_a_file_to_a_verdict(tmp_path: Path) -> None:
    audit, plan, toy = LINES[:3]
    assert inside(*arguments(audit), f"outputs={tmp_path}").returncode == 0
    assert inside(*arguments(plan), f"outputs={tmp_path}").returncode == 0
    line = [word for word in shlex.split(toy)[2:] if not word.startswith("outputs=")]
    ran = inside(*line, f"outputs={tmp_path}", "tracker=none")
    last = json.loads(ran.stdout)["result"]["nodes"][-1]
    assert "held-out pairs" in last["metrics"]["verdict"]
