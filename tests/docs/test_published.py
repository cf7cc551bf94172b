"""Check that every command under a published figure names the commit that it ran at, and holds there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stages.config.installation import ROOT
from tests.docs.test_pages import DOCS, PUBLISHED, README

PROGRAM = "python run.py"
COMMAND = re.compile(r"`(python (?:run\.py|-m tests\.bench\.)[^`]*)`(?:;\s+([0-9a-f]{8})\b)?")
MEMORY = re.compile(r"(\d+) GiB of memory")


def published_commands() -> list[tuple[str, str]]:
    """Return every command of the pages with its commit, or with an empty text if it names none."""
    found = list[tuple[str, str]]()
    for page in PUBLISHED:
        for command, commit in COMMAND.findall(page.read_text(encoding="utf-8")):
            found.append((" ".join(command.split()), commit))
    return found


COMMANDS = published_commands()
OF_RUNS = [(command, commit) for command, commit in COMMANDS if command.startswith(PROGRAM)]


def git(*words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False)


def require_commit(commit: str) -> None:
    """Skip the test if this checkout has no history."""
    if git("cat-file", "-e", f"{commit}^{{commit}}").returncode:
        pytest.skip(f"{commit} is not in this checkout")


def test_every_command_names_its_commit() -> None:
    assert len(COMMANDS) > 10
    assert [command for command, commit in COMMANDS if not commit] == []


def test_every_benchmark_is_there_at_its_commit() -> None:
    for command, commit in COMMANDS:
        require_commit(commit)
        if not command.startswith(PROGRAM):
            module = command.split()[2].replace(".", "/")
            assert git("cat-file", "-e", f"{commit}:{module}.py").returncode == 0, command


@pytest.mark.extended
@pytest.mark.parametrize(("command", "commit"), OF_RUNS)
def test_a_command_composes_at_its_commit(command: str, commit: str, tmp_path: Path) -> None:
    require_commit(commit)
    tree = git("archive", commit, "run.py", "stages", "conf", "recipes").stdout
    subprocess.run(["tar", "-x"], input=tree, cwd=tmp_path, check=True)
    words = shlex.split(command.removeprefix(PROGRAM))
    ran = subprocess.run(
        [sys.executable, "run.py", *words, "--cfg", "job"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_the_memory_of_the_demo_is_one_figure() -> None:
    [memory] = MEMORY.findall((ROOT / "recipes" / "demo.yaml").read_text(encoding="utf-8"))
    [line] = re.findall(r"^make demo .*$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    first_run = (DOCS / "tutorials" / "first-run.md").read_text(encoding="utf-8")
    assert re.findall(r"(\d+) GiB", line) == [memory]
    assert MEMORY.findall(first_run) == [memory]
