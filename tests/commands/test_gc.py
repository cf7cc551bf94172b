"""Tests of `stage=gc` while another process builds in the same store."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.config.installation import ROOT
from stages.store import locks
from stages.store.store import Store
from tests.helpers import TINY, Chain, build, inside, nodes

OTHER = ("stage=pairs", "label.max_failed=0.2")
# A build that has planned its nodes, and pauses before it locks the one that is missing.
BETWEEN = """
import sys
from contextlib import contextmanager
from pathlib import Path
from stages.store.store import Store
from tests.helpers import build

@contextmanager
def paused(store, node, claim=Store.claim):
    print("between", flush=True)
    sys.stdin.readline()
    with claim(store, node) as folder:
        yield folder

Store.claim = paused
build(Path(sys.argv[1]), *sys.argv[2:])
"""


@contextmanager
def building(root: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", BETWEEN, str(root), *overrides], cwd=ROOT, **pipes
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def idle(chain: Chain) -> Path:
    """The folder of labels that nothing needs, and from which the pairs of OTHER would be made."""
    build(chain.root, "stage=label", *OTHER[1:])
    build(chain.root, "stage=label")
    return chain.folder("label", *OTHER[1:])


def removing(chain: Chain) -> subprocess.CompletedProcess[str]:
    return inside(*TINY, f"outputs={chain.root}", "stage=gc", "gc.remove=true")


@pytest.mark.slow
def test_what_a_command_has_found_is_not_removed_before_it_is_used(
    chain: Chain, idle: Path
) -> None:
    with building(chain.root, *OTHER) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "between\n"
        refused = removing(chain)
        assert refused.returncode == 1
        assert f"nothing is removed from {chain.root}, as a command uses it" in refused.stderr
        assert str(idle) in inside(*TINY, f"outputs={chain.root}", "stage=gc").stdout, (
            "listing is still possible"
        )
        output, _ = process.communicate("\n")
        assert process.returncode == 0, output
    assert Store(chain.root).find(nodes(chain.root, *OTHER)["pairs"])


def test_a_node_in_the_making_is_named(chain: Chain) -> None:
    with Store(chain.root).lock("sft", "0123456789ab"):
        assert "sft 0123456789ab is being built" in removing(chain).stderr


@pytest.mark.extended
def test_nothing_is_removed_while_a_manifest_or_a_sweep_cannot_be_read(
    chain: Chain, idle: Path
) -> None:
    manifest = chain.folder("report") / "manifest.json"
    text = manifest.read_bytes()
    manifest.write_bytes(text[:100])
    assert f"{manifest.parent} cannot be read" in removing(chain).stderr
    manifest.write_bytes(text)
    listed = chain.root / "multirun" / "sweep" / "0" / "nodes.json"
    listed.parent.mkdir(parents=True)
    listed.write_text('{"label": "')
    assert f"{listed} cannot be read" in removing(chain).stderr
    assert idle.exists() and chain.folder("label").exists()


@pytest.mark.slow
def test_a_killed_command_keeps_nothing_from_being_removed(chain: Chain, idle: Path) -> None:
    with building(chain.root, *OTHER) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert removing(chain).returncode == 0
    assert not idle.exists()


def test_a_command_that_starts_while_nodes_are_removed_waits_and_then_finds_what_is_left(
    chain: Chain,
) -> None:
    with locks.hold_store_alone(chain.root) as free:
        assert free
        line = (*TINY, f"outputs={chain.root}", "stage=data")
        begun = subprocess.Popen(
            [sys.executable, "run.py", *line], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert begun.stdout is not None
        assert begun.stdout.readline().startswith("recipe: tiny; page: ")
        assert begun.stdout.readline().startswith(f"stage=gc is removing nodes from {chain.root}.")
        assert begun.poll() is None
    output, _ = begun.communicate(timeout=60)
    assert begun.returncode == 0
    assert f"reused {chain.folder('data')}" in output
