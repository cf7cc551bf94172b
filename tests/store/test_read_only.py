"""Tests of another user's read-only store: commands that read it work, and commands that write end in one line.

The commands run in one process, as only a process can be somebody else.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from stages.config.installation import ROOT
from tests.helpers import TINY

Command = Callable[..., subprocess.CompletedProcess[str]]
# Root reads and writes everything by a capability; without any, the owner and the mode of a file count for it, too.
WITHOUT = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
NOBODY = 65534


@pytest.fixture(scope="module")
def foreign(built: Path) -> Iterator[Path]:
    """Return the tiny chain in a store of another user. Without root, the file modes forbid writing instead."""
    if os.getuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root needs setpriv to be somebody who may not write")
    with TemporaryDirectory() as folder:
        root = Path(shutil.copytree(built, Path(folder) / "outputs", symlinks=True))
        for path in (root, *root.rglob("*")):
            if os.getuid() == 0:
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
            elif not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        yield root
        for path in (root, *root.rglob("*")):
            if os.getuid() != 0 and path.is_dir() and not path.is_symlink():
                path.chmod(0o755)


# Runs every line that it reads, a JSON list, and writes the status, output and errors of each.
SOMEBODY = """
import json, sys
from tests.helpers import inside

for line in sys.stdin:
    ran = inside(*json.loads(line), typed="Name a colour.\\n")
    print(json.dumps([ran.returncode, ran.stdout, ran.stderr]), flush=True)
"""


@pytest.fixture(scope="module")
def command(foreign: Path) -> Iterator[Command]:
    """Run `python run.py …` on the store as a user who cannot write to it."""
    prefix = WITHOUT if os.getuid() == 0 else []
    tried = subprocess.run(
        [*prefix, "touch", str(foreign / "mine")], capture_output=True, check=False
    )
    if tried.returncode == 0 or (foreign / "mine").exists():
        pytest.skip("this machine lets everybody write everywhere")

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*prefix, sys.executable, "-c", SOMEBODY], cwd=ROOT, **pipes) as somebody:

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            line = (f"outputs={foreign}", *arguments)
            somebody.stdin.write(f"{json.dumps(line)}\n")
            somebody.stdin.flush()
            return subprocess.CompletedProcess(line, *json.loads(somebody.stdout.readline()))

        yield run
        somebody.stdin.close()


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        (("stage=plan", *TINY, "dpo.beta=0.7"), "beta 0.1 -> 0.7"),
        (("stage=compare",), "The page is not written"),
        pytest.param(
            ("stage=chat", "chat.max_new_tokens=2"), "> Name a colour.", marks=pytest.mark.slow
        ),
        (("stage=report", *TINY), "report.html"),
        (("stage=doctor",), "are intact."),
    ],
)
def test_what_looks_at_it_works(
    line: tuple[str, ...], pattern: str, command: Command, foreign: Path
) -> None:
    before = {path: path.lstat().st_mtime_ns for path in (foreign, *foreign.rglob("*"))}
    ran = command(*line)
    assert ran.returncode == 0, ran.stderr
    assert pattern in ran.stdout and "Traceback" not in ran.stderr
    assert {path: path.lstat().st_mtime_ns for path in (foreign, *foreign.rglob("*"))} == before


def test_weights_that_their_owner_keeps_to_himself_are_named(
    command: Command, foreign: Path
) -> None:
    """Earlier versions wrote weights that only their owner can read."""
    weights = next((foreign / "dpo").glob("*/model/model.safetensors"))
    mode = weights.stat().st_mode
    weights.chmod(0o600 if os.getuid() == 0 else 0)
    try:
        ran = command("stage=chat")
    finally:
        weights.chmod(mode)
    assert ran.returncode == 1
    assert re.fullmatch(
        rf"error: {weights}: Permission denied\..*: chmod -R go\+rX FOLDER\.\n", ran.stderr
    )


@pytest.mark.extended
@pytest.mark.parametrize(
    "line", [("stage=dpo", *TINY, "dpo.beta=0.7"), ("stage=plan", *TINY, "dpo.beta=0.1,0.7", "-m")]
)
def test_what_would_write_says_in_one_line_where_it_may_not(
    line: tuple[str, ...], command: Command
) -> None:
    ran = command(*line)
    assert ran.returncode == 1
    [error] = ran.stderr.splitlines()
    assert (
        error.startswith("error: ") and "Permission denied" in error and "outputs=FOLDER" in error
    )
