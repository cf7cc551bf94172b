"""Tests of training in several real processes: the same result as in one, readable errors, and locks."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.config.errors import UserError
from stages.config.installation import ROOT
from stages.launch import agent
from stages.launch import processes as parent
from stages.preflight import constraints
from stages.store.store import Store
from stages.store.workspace import SCRATCH, read_curves, read_samples
from tests.helpers import TINY, Chain, build, command, made_once, nodes, refused

# Budgets by which the processes would have neither as many micro-batches nor as many pairs in them as each other.
TWO = (
    "launch=ddp",
    "launch.processes=2",
    "sft.runtime.token_budget=120",
    "dpo.runtime.token_budget=160",
)
FOLLOWS = ("launch=ddp", "launch.nodes=2", "launch.node_rank=1", "launch.rendezvous=127.0.0.1:1")
# by the first process's clock
TWO += ("sft.runtime.save_minutes=1e-9", "dpo.runtime.save_minutes=1e-9")


def without(chain: Chain, name: str) -> Path:
    """Move a node out of the store, and return its new folder."""
    copy = chain.root / f"kept-{name}"
    chain.folder(name).rename(copy)
    return copy


def running(pattern: str) -> list[int]:
    """Return the processes whose command line contains this text."""
    process_list = subprocess.run(
        ["pgrep", "-f", pattern], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in process_list.stdout.split()]


PATIENCE = 300  # s: a machine with other work takes several times as long


def wait_for(what: object) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Rows are no multiple of anything: 17 validation rows and 7 held-out pairs, some rows cut to whole batches.
UNEVEN = (
    "pairs.validation_fraction=0.25",
    "data.tasks.validation=17",
    "sft.max_length=64",
    "dpo.batch_size=16",
)


@pytest.fixture(scope="module")
def trained_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store up to DPO, built by one process."""
    return made_once(
        tmp_path_factory, "trained-alone", lambda root: build(root, "stage=dpo", *UNEVEN)
    )


@pytest.mark.extended
@pytest.mark.parametrize("stage", [pytest.param("sft", marks=pytest.mark.slow), "dpo"])
def test_two_processes_train_what_one_does(stage: str, trained_alone: Path, tmp_path: Path) -> None:
    chain = Chain(shutil.copytree(trained_alone, tmp_path / "outputs", symlinks=True))
    alone = chain.folder(stage, *UNEVEN)
    manifest = chain.manifest(stage, *UNEVEN)
    one = load_file(alone / "model" / "model.safetensors")
    alone.rename(chain.root / "alone")
    ran = command(*TINY, f"outputs={chain.root}", f"stage={stage}", *UNEVEN, *TWO)
    assert ran.returncode == 0, ran.stderr
    assert "has moved on" not in ran.stderr, "its processes wait for each other, but not for long"
    node = chain.folder(stage, *UNEVEN)
    two = load_file(node / "model" / "model.safetensors")
    together = chain.manifest(stage, *UNEVEN)
    assert (manifest["metrics"]["processes"], together["metrics"]["processes"]) == (1, 2)
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-5, rtol=0), name
    figures = manifest["metrics"]
    assert together["metrics"]["eval_loss"] == pytest.approx(figures["eval_loss"], abs=1e-5)
    curves = [read_curves(folder) for folder in (chain.root / "alone", node)]
    for point, other in zip(*curves, strict=True):
        for name in ("step", "loss", "num_tokens", "eval_loss", "rewards/margins"):
            assert other.get(name) == pytest.approx(point.get(name), abs=1e-5), name
    samples = read_samples(node)
    assert samples == read_samples(chain.root / "alone") != [], "the first process answers, once"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "pattern"),
    [
        ("launch=fsdp", "launch=fsdp shards a model over GPUs"),
        ("sft.learning_rate=1e6", "training diverged"),
    ],
)
def test_an_error_in_a_process_is_told_in_one_line_and_ends_all(
    override: str, pattern: str, chain: Chain
) -> None:
    without(chain, "sft")
    ran = command(*TINY, f"outputs={chain.root}", "stage=sft", *TWO, override)
    assert ran.returncode != 0
    assert "Traceback" not in ran.stderr
    assert f"\nerror: {pattern}" in f"\n{ran.stderr}"
    assert not running(str(chain.root))


def started(*line: str) -> subprocess.Popen[str]:
    """Start `python run.py …`, with a pipe for its errors."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "run.py", *line], cwd=ROOT, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize("resumed_by", [1, 2])
def test_a_killed_process_ends_the_others_and_is_told(resumed_by: int, chain: Chain) -> None:
    line = [*TINY, f"outputs={chain.root}", "stage=sft", "sft.epochs=3"]
    model = chain.folder("sft", "sft.epochs=3") / "model" / "model.safetensors"
    build(chain.root, *line[-2:])
    alone = load_file(model)
    shutil.rmtree(model.parents[1])
    partial = Store(chain.root).partial(nodes(chain.root, "sft.epochs=3")["sft"])
    parent = started(*line, *TWO, "sft.runtime.save_steps=20")
    wait_for(lambda: list((partial / SCRATCH).glob("checkpoints/*/complete.json")))
    workers = running(f"stages.launch.worker {partial}")
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, error_text = parent.communicate(timeout=PATIENCE)
    assert parent.returncode != 0
    assert "error: a process was killed" in error_text
    assert not running(f"stages.launch.worker {partial}")

    # The resume is within the second epoch, in which the rows have another order.
    build(chain.root, *line[-2:], *(TWO if resumed_by == 2 else ()))
    assert len(chain.manifest("sft", "sft.epochs=3")["attempts"]) == 2
    resumed = load_file(model)
    assert all(torch.allclose(alone[name], resumed[name], atol=1e-5, rtol=0) for name in alone)


@pytest.mark.slow
def test_a_killed_parent_leaves_its_work_to_the_next_command(chain: Chain) -> None:
    """Check that the children of a killed parent finish under the node's lock, and that their result is used."""
    longer = "sft.epochs=24"  # so that it still trains when the next command comes
    store = Store(chain.root)
    node = nodes(chain.root, longer)["sft"]
    partial = store.partial(node)
    line = [*TINY, f"outputs={chain.root}", "stage=sft", *TWO, "sft.runtime.save_steps=8", longer]
    parent = started(*line)
    wait_for(lambda: list((partial / SCRATCH).glob("checkpoints/*/complete.json")))
    parent.kill()
    parent.wait()
    assert len(running(f"stages.launch.worker {partial}")) == 2, "the children go on"
    assert store.is_locked("sft", node.fingerprint)
    ran = command(*line)
    assert ran.returncode == 0, ran.stderr
    assert f"is being built by process {parent.pid} " in ran.stdout
    assert "loss" not in ran.stderr, "nobody trains again"
    manifest = chain.manifest("sft", longer)
    assert manifest["metrics"]["processes"] == 2
    assert len(manifest["attempts"]) == 2


@pytest.mark.extended
def test_a_killed_agent_ends_its_workers(chain: Chain) -> None:
    without(chain, "sft")
    store = Store(chain.root)
    node = nodes(chain.root)["sft"]
    partial = store.partial(node)
    parent = started(*TINY, f"outputs={chain.root}", "stage=sft", *TWO)
    wait_for(lambda: len(running(f"stages.launch.worker {partial}")) == 2)
    parent.kill()
    parent.wait()
    for pid in running(f"stages.launch.agent {partial}"):
        os.kill(pid, signal.SIGKILL)
    # nobody works without the lock
    wait_for(lambda: not running(f"stages.launch.worker {partial}"))
    wait_for(lambda: not store.is_locked("sft", node.fingerprint))


@pytest.mark.parametrize(
    ("rendezvous", "pattern"),
    [
        ("this-host-is-nowhere.invalid:29477", "node 0 cannot listen there"),
        ("node-0:0", "which other machines cannot reach"),
    ],
)
def test_where_nodes_cannot_meet_is_told(
    rendezvous: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check a machine's own name, which often resolves to its loopback address."""
    real_getaddrinfo = socket.getaddrinfo

    def own(host, *rest, **options):
        return real_getaddrinfo("127.0.1.1" if host == "node-0" else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", own)
    with pytest.raises(UserError, match=pattern):
        agent.open_rendezvous(rendezvous, 0)


@pytest.mark.slow
def test_two_nodes_train_what_one_process_does(chain: Chain) -> None:
    """Run two commands on one store, as on two machines: the second joins the training and publishes nothing."""
    copy = without(chain, "dpo")
    line = [*TINY, f"outputs={chain.root}", "stage=dpo", *FOLLOWS[:2], "launch.processes=1"]
    line += ["launch.rendezvous=127.0.0.1:29477"]
    line += ["sft.runtime.micro_batch=4", "dpo.runtime.micro_batch=2"]
    pair = [started(*line, f"launch.node_rank={rank}") for rank in (1, 0)]
    errors = [process.communicate(timeout=PATIENCE)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], errors
    manifest = chain.manifest("dpo")
    assert manifest["metrics"]["processes"] == 2
    assert len(manifest["attempts"]) == 1
    one, two = (load_file(f / "model" / "model.safetensors") for f in (copy, chain.folder("dpo")))
    assert all(torch.allclose(one[name], two[name], atol=1e-5, rtol=0) for name in one)


@pytest.mark.slow
def test_zero3_trains_as_one_process_does(chain: Chain) -> None:
    """FSDP2 needs GPUs; tests/pretend trains with it."""
    pytest.importorskip("deepspeed")
    folder = chain.folder("dpo")
    folder.rename(chain.root / "alone")
    zero3 = ("launch=zero3", f"outputs={chain.root}", "stage=dpo")
    ran = command(*TINY, *zero3, *TWO[1:], env=os.environ | {"DS_ACCELERATOR": "cpu"})
    assert ran.returncode == 0, ran.stderr
    one, two = (
        load_file(f / "model" / "model.safetensors") for f in (chain.root / "alone", folder)
    )
    assert set(one) == set(two)
    assert all(torch.allclose(one[name], two[name], atol=1e-5, rtol=0) for name in one)


def test_a_node_that_follows_does_not_wait_for_ever(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(chain, "dpo")
    monkeypatch.setattr(parent, "PATIENCE_SECONDS", 1)
    with pytest.raises(UserError, match=r"node 0 .* dpo "):
        build(chain.root, "stage=dpo", *FOLLOWS, "dpo.runtime.micro_batch=1")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("launch.processes=3",), "sft.batch_size=16: this is not a multiple of 3 processes"),
        (("launch.nodes=2",), "needs launch.rendezvous=HOST:PORT"),
        (("launch.node_rank=1",), "launch.node_rank=1 must be below"),
        (("sft.adapter=qlora", "launch=fsdp"), "sft.adapter=qlora cannot be sharded"),
    ],
)
def test_what_cannot_be_launched_is_told(
    arguments: tuple[str, ...], pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # whatever extra is asked for is there
    monkeypatch.setattr(constraints, "find_spec", lambda package: package)
    assert pattern in refused(*TINY, f"outputs={tmp_path}", *TWO, *arguments)
    assert not Chain(tmp_path).count(), "before anything is built"
