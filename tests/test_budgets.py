"""Tests of tests/budgets.py, in real pytest runs over scratch folders of tests."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import budgets
from tests.helpers import ROOT

TESTS = Path(__file__).parent
CONFTEST = """
from tests import budgets

budgets.BUDGETS |= {"frugal": 5.0, "lavish": 0.4}
budgets.yardstick = lambda: SLOWNESS * budgets.REFERENCE
pytest_plugins = ["tests.budgets"]
"""
SCRATCH = {
    "frugal/test_frugal.py": """
import time

def test_that_waits():
    time.sleep(0.6)
""",
    "lavish/test_lavish.py": """
import subprocess, sys, time
import pytest

BURN = "import time\\nwhile time.process_time() < {}: pass"

@pytest.mark.slow
def test_that_is_slow():
    exec(BURN.format(time.process_time() + 0.5))

def test_that_starts_a_process():
    subprocess.run([sys.executable, "-c", BURN.format(0.3)], check=True)

def test_that_computes():
    exec(BURN.format(time.process_time() + 0.3))
""",
    "other/test_other.py": """
import time
import pytest

@pytest.fixture(scope="session")
def shared():
    end = time.process_time() + 0.3
    while time.process_time() < end: pass

def test_that_is_the_first_to_ask(shared):
    pass
""",
}


def scratch(folder: Path, *options: str, slowness: int = 1) -> subprocess.CompletedProcess[str]:
    """Run pytest over folders of which one exceeds its budget, as on a machine that is so many times as slow."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow: long\n")
    (folder / "conftest.py").write_text(CONFTEST.replace("SLOWNESS", str(slowness)))
    for name, content in SCRATCH.items():
        file = folder / "tests" / name
        file.parent.mkdir(parents=True)
        file.write_text(content)
    line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    environment = {"PATH": "", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def table(ran: subprocess.CompletedProcess[str]) -> dict[str, list[float]]:
    """Return the numbers behind each name in the summary: tests, CPU-seconds and budget."""
    matches = re.findall(r"^(\w[a-z ]*?) +((?: +\d+[.\d]*)+) *$", ran.stdout, flags=re.MULTILINE)
    return {name: [float(number) for number in numbers.split()] for name, numbers in matches}


@pytest.mark.slow
def test_a_room_over_its_budget_fails_the_run_though_its_tests_pass(tmp_path: Path) -> None:
    ran = scratch(tmp_path, "-n", "2", "--budget-factor=1")
    assert "5 passed" in ran.stdout, ran.stdout
    assert ran.returncode == pytest.ExitCode.TESTS_FAILED
    assert "lavish is over its budget" in ran.stdout
    rows = table(ran)
    assert rows["lavish"] == [2, pytest.approx(0.65, abs=0.1), 0.4], "its own and its process's"
    assert rows["slow"] == [1, pytest.approx(0.55, abs=0.1)], "without a budget"
    assert rows["frugal"][1] < 0.3, "waiting costs nothing"
    assert rows["other"][1] < 0.3 <= rows["session fixtures"][0], "on no room's account"
    assert rows["start"][0] > 0.3 and rows["start"][1] == 3 * budgets.BUDGETS[budgets.START], (
        "of three processes"
    )
    used = sum(rows[name][1] for name in ("lavish", "slow", "frugal", "other"))
    assert rows["all"] == [
        5,
        pytest.approx(used + rows["start"][0] + rows["session fixtures"][0], abs=0.5),
    ]


@pytest.mark.extended
@pytest.mark.parametrize(
    ("option", "budget", "over"),
    [pytest.param("--budget-factor=10", 4, False, marks=pytest.mark.slow), ("-q", 0.4, True)],
)
def test_a_run_passes_within_its_budgets_or_where_none_is_to_be_kept(
    option: str, budget: float, over: bool, tmp_path: Path
) -> None:
    ran = scratch(tmp_path, "-p", "no:xdist", option, "-m", "not slow")
    assert ran.returncode == 0, ran.stdout
    assert ("over its budget" in ran.stdout) is over
    assert table(ran)["lavish"] == [2, pytest.approx(0.65, abs=0.2), budget]


@pytest.mark.slow
def test_a_slow_machine_has_larger_budgets(tmp_path: Path) -> None:
    ran = scratch(tmp_path, "-n", "1", "--budget-factor=1", "-m", "not slow", slowness=3)
    assert ran.returncode == 0, ran.stdout
    assert table(ran)["lavish"][2] == pytest.approx(1.2)
    assert "3.00 times as long" in ran.stdout
    assert budgets.yardstick() > 0


def test_the_budgets_together_leave_time_to_spare() -> None:
    """Check that all budgets together fit into WHOLE, for the three processes of `make test`."""
    rooms = {budgets.room(f"tests/{path.relative_to(TESTS)}") for path in TESTS.rglob("test_*.py")}
    other_rooms = len(rooms - set(budgets.BUDGETS)) * budgets.OTHERS
    assert (
        sum(budgets.BUDGETS.values()) + 2 * budgets.BUDGETS[budgets.START] + other_rooms
        <= budgets.WHOLE
    )
