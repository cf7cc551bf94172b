"""Tests of `stage=gc` while another process builds in the same store."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.config.installation import ROOT
from stages.extras.gc.command import (
    KEPT_SECONDS,
    is_created_here,
    leftover_folders,
    list_or_remove_unneeded,
)
from stages.store import locks
from stages.store.store import Store
from stages.store.workspace import SCRATCH
from tests.helpers import TINY, Chain, build, inside, nodes, refused
from tests.pipeline.test_resume import CADENCE, checkpoints, kill_when

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
        assert begun.stdout.readline().startswith("recipe: tiny; ")
        assert begun.stdout.readline().startswith(f"stage=gc is removing nodes from {chain.root}.")
        assert begun.poll() is None
    output, _ = begun.communicate(timeout=60)
    assert begun.returncode == 0
    assert f"reused {chain.folder('data')}" in output


@pytest.mark.extended
def test_a_killed_training_stays_with_its_inputs_and_is_resumed(chain: Chain) -> None:
    other = "sft.seed=7"
    node = nodes(chain.root, other)["sft"]
    store = Store(chain.root)
    data = store.folder(node.inputs["data"])
    for stage in ("report", "latest", "compare.html"):
        shutil.rmtree(chain.root / stage, ignore_errors=True)  # nothing else needs the data
    scratch = store.partial(node) / SCRATCH
    kill_when(lambda: bool(checkpoints(scratch)), chain.root, "sft", False, other)
    before = checkpoints(scratch)
    for command in (inside(*TINY, f"outputs={chain.root}", "stage=gc"), removing(chain)):
        [line] = [each for each in command.stdout.splitlines() if str(scratch.parent) in each]
        assert command.returncode == 0 and " MiB " in line and "delete the folder" in line
        assert checkpoints(scratch) == before
    assert not chain.folder("dpo").exists() and data.exists()
    build(chain.root, "stage=sft", other, *CADENCE)
    assert store.find(node) and len(chain.manifest("sft", other)["attempts"]) == 2


WORK = {
    "scratch/checkpoints/checkpoint-5/model.safetensors": True,
    "scratch/shards/block-000001.parquet": True,
    "scratch/spent/calls.jsonl": True,
    "scratch/shards/block-000001.lock": False,
    "scratch/attempts.json": False,
    "curves.jsonl": False,
}


@pytest.mark.parametrize("suffix", [".partial", ".pulled", ".replaced"])
@pytest.mark.parametrize("file", WORK)
def test_unfinished_work_stays_for_a_week(file: str, suffix: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.lock("label", "0123456789ab"):
        pass
    folder = tmp_path / "label" / f"0123456789ab{suffix}"
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_text("work")
    list_or_remove_unneeded(store, remove=True)
    assert folder.exists() == (WORK[file] and suffix == ".partial")
    if folder.exists():
        long_ago = time.time() - KEPT_SECONDS - 1
        os.utime(folder / file, (long_ago, long_ago))
        list_or_remove_unneeded(store, remove=True)
    assert not folder.exists()


def test_a_complete_node_that_a_kill_left_unnamed_stays(chain: Chain) -> None:
    store = Store(chain.root)
    node = nodes(chain.root)["report"]
    with store.lock(node.stage, node.fingerprint):
        store.folder(node).rename(store.partial(node))
    shutil.rmtree(chain.root / "latest")
    assert removing(chain).returncode == 0
    assert store.partial(node).exists() and chain.folder("eval").exists()


FOREIGN = (
    "sft/mine.partial",
    "sft/aaaaaaaaaaaa.partial",
    "photos/0123456789ab.partial",
    "sft/old.replaced",
)
FOREIGN += ("pairs/bbbbbbbbbbbb.replaced", "letters/2024.partial")


def test_gc_removes_nothing_that_the_store_did_not_make(chain: Chain, tmp_path: Path) -> None:
    store = Store(chain.root)
    node = nodes(chain.root)["sft"]
    for name in FOREIGN:
        (chain.root / name).mkdir(parents=True)
        (chain.root / name / "letter").write_text("dear")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "letter").write_text("dear")
    store.folder(node).with_suffix(".replaced").symlink_to(elsewhere)
    shutil.copytree(store.folder(node), store.partial(node))
    ran = inside(*TINY, f"outputs={chain.root}", "stage=gc", "gc.remove=true")
    assert ran.returncode == 0, ran.stderr
    assert not store.partial(node).exists(), "this one is the store's"
    assert all((chain.root / name / "letter").exists() for name in FOREIGN)
    assert (elsewhere / "letter").exists()
    assert store.find(nodes(chain.root)["report"])


def test_gc_follows_no_link_to_another_disk(chain: Chain, tmp_path: Path) -> None:
    store = Store(chain.root)
    node = nodes(chain.root)["sft"]
    store.partial(node).mkdir()
    (chain.root / "sft").rename(tmp_path / "sft")
    (chain.root / "sft").symlink_to(tmp_path / "sft")
    assert leftover_folders(store) == [store.partial(node)]
    assert not is_created_here(store, store.partial(node))


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    for name in FOREIGN:
        (tmp_path / name).mkdir(parents=True)
    message = refused(*TINY, f"outputs={tmp_path}", "stage=gc", "gc.remove=true")
    assert message.startswith(f"outputs={tmp_path} is not an artifact store")
    assert all((tmp_path / name).exists() for name in FOREIGN)


def test_nothing_is_removed_while_a_folder_is_not_the_node_of_its_name(chain: Chain) -> None:
    shutil.copytree(chain.folder("data"), chain.folder("data").with_name("0123456789ab"))
    refusal = refused(*TINY, f"outputs={chain.root}", "stage=gc", "gc.remove=true")
    assert "cannot be read" in refusal


@pytest.mark.extended
def test_in_an_empty_store_nothing_was_built(tmp_path: Path) -> None:
    inside(*TINY, f"outputs={tmp_path}", "stage=plan")  # it leaves a folder of Hydra's
    ran = inside(*TINY, f"outputs={tmp_path}", "stage=gc")
    assert ran.returncode == 0, ran.stderr
    assert "nothing was built" in ran.stdout
