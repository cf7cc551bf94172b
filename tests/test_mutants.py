"""The tool that draws random faults finds those that tests miss, and changes nothing that only speaks to people."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.config.installation import ROOT
from tests import mutants

SOURCE = '''
"""Sums of 1 and 2."""

from logging import getLogger

log = getLogger(__name__)
LIMIT = 10


def total(numbers: list[int]) -> int:
    """Return the sum, or 0."""
    if not numbers or len(numbers) > LIMIT:
        log.warning("0 of 1")
        raise ValueError(f"{len(numbers) + 1} numbers" + "!")
    return sum(numbers)


def smallest(numbers: list[int]) -> int:
    return min(numbers)


def count_message(count: int) -> str:
    return "1" * (count + 1)
'''
TESTS = """
import pytest
from stages.sums.total import total


def test_a_total_is_a_sum():
    assert total([1, 2]) == 3
    assert total([1] * 10) == 10
    for numbers in ([], [1] * 11):
        with pytest.raises(ValueError):
            total(numbers)
"""


def changes(source: str) -> set[tuple[int, str]]:
    """Return the line and the first line of what may stand there of each change."""
    pairs = mutants.changes_of(ast.parse(source))
    return {(mutants.line_of(node), ast.unparse(after).split("\n")[0]) for node, after in pairs}


def test_what_decides_may_change_and_what_is_only_read_by_people_may_not() -> None:
    assert changes(SOURCE) == {
        (7, "11"),
        (7, "9"),
        (12, "if not (not numbers or len(numbers) > LIMIT):"),
        (12, "not numbers and len(numbers) > LIMIT"),
        (12, "numbers"),
        (12, "len(numbers) >= LIMIT"),
        (12, "len(numbers) <= LIMIT"),
        (14, "pass"),
        (15, "return int()"),
        (19, "return int()"),
        (19, "max(numbers)"),
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a == b", "a != b"),
        ("a < b < c", "a < b <= c"),
        ("a in b", "a not in b"),
        ("a and b and c", "a or b or c"),
        ("a + b * c", "a + b / c"),
        ("a if b else c", "c if b else a"),
        ("[a for a in b if a]", "[a for a in b]"),
        ("a = True", "a = False"),
        ("f(0.5)", "f(1.5)"),
        ("f(a)", "pass"),
        ("a[0] += b", "pass"),
        ("any(a)", "all(a)"),
    ],
)
def test_each_kind_of_change_is_among_them(before: str, after: str) -> None:
    tree = ast.parse(before)
    sources = set[str]()
    for number, _ in enumerate(mutants.changes_of(tree)):
        tree = ast.parse(before)
        node, replacement = [*mutants.changes_of(tree)][number]
        sources.add(ast.unparse(mutants.Replacing(node, replacement).visit(tree)))
    assert after in sources
    assert before not in sources


def test_a_seed_draws_the_same_mutants_and_another_seed_others() -> None:
    first = mutants.draw_mutants("pairing", "1", 5)
    assert first == mutants.draw_mutants("pairing", "1", 5)
    assert first != mutants.draw_mutants("pairing", "2", 5)
    assert len(first) == 5
    for mutant in first:
        lines = (ROOT / mutant.path).read_text(encoding="utf-8").splitlines()
        assert lines[mutant.line - 1].strip() == mutant.original_line
        assert mutant.diff
        assert ast.parse(mutant.source)


@pytest.mark.extended
def test_the_survivors_are_the_faults_that_no_test_of_the_room_notices(tmp_path: Path) -> None:
    files = {
        "stages/__init__.py": "",
        "stages/sums/__init__.py": "",
        "stages/sums/total.py": SOURCE,
        "tests/__init__.py": "",
        "tests/sums/test_total.py": TESTS,
        "pyproject.toml": "[tool.pytest.ini_options]\nmarkers = ['extended']\n",
    }
    for name, content in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    shutil.copy(ROOT / "tests" / "mutants.py", tmp_path / "tests")
    arguments = ["tests.mutants", "sums", "7", "--count=99"]
    line = [sys.executable, "-m", *arguments]
    # The small tree has no conftest.py that knows the options of these tests.
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    ran = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    places = [each.split(": ")[0] for each in ran.stdout.splitlines() if each[0] not in "+-"]
    assert places == ["stages/sums/total.py:19"] * 2 + ["9 killed, 2 survived of 11"]
    assert (tmp_path / "stages/sums/total.py").read_text() == SOURCE
