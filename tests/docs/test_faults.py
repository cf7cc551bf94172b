"""Run every command of `docs/explanation/faults.md`: it ends with the exit code that its row states."""

import re
import shlex

import pytest

from stages.config.installation import ROOT
from tests.helpers import Chain, inside

PAGE = ROOT / "docs" / "explanation" / "faults.md"
ROW = re.compile(r"^\|.*\| `python run.py ([^`]+)`[^|]*\| (\d) \|$", re.MULTILINE)
ROWS = ROW.findall(PAGE.read_text(encoding="utf-8"))


def test_every_row_has_a_command_and_an_exit_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(ROWS) == text.count("`python run.py") >= 12


@pytest.mark.parametrize(("command", "status"), ROWS)
def test_a_fault_ends_as_the_page_says(command: str, status: str, chain: Chain) -> None:
    outcome = inside(*shlex.split(command), "tracker=none", f"outputs={chain.root}")
    assert outcome.returncode == int(status), outcome.stderr
    assert not outcome.returncode or "error: " in outcome.stdout + outcome.stderr
