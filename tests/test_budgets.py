"""Tests of tests/budgets.py, in real pytest runs over scratch folders of tests."""

import subprocess
import sys
from pathlib import Path

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


def test_the_budgets_together_leave_time_to_spare() -> None:
    """Check that all budgets together fit into WHOLE, for the three processes of `make test`."""
    rooms = {budgets.room(f"tests/{path.relative_to(TESTS)}") for path in TESTS.rglob("test_*.py")}
    other_rooms = len(rooms - set(budgets.BUDGETS)) * budgets.OTHERS
    assert (
        sum(budgets.BUDGETS.values()) + 2 * budgets.BUDGETS[budgets.START] + other_rooms
        <= budgets.WHOLE
    )
