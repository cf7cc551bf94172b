"""Tests of training in several real processes: the same result as in one, readable errors, and locks."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from stages.config.blocks.labels import LABELS, Label, PreferenceFile
from stages.config.blocks.training import ScoredGRPO
from stages.config.errors import UserError
from stages.config.installation import ROOT
from stages.launch import agent, job_file, worker
from stages.launch import processes as parent
from stages.launch.job_file import read_block
from stages.preflight import constraints, machine_needs
from stages.store.store import Store
from stages.store.workspace import SCRATCH, read_samples
from tests.helpers import TINY, Chain, build, command, made_once, nodes, refused, settings

# Budgets by which the processes would not have as many micro-batches as each other.
TWO = (
    "launch=ddp",
    "launch.processes=2",
    "sft.runtime.token_budget=120",
    "dpo.runtime.token_budget=70",
)
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
UNEVEN = ("pairs.validation_fraction=0.25", "data.tasks.validation=17", "sft.max_length=64")


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
    alone, manifest = chain.folder(stage, *UNEVEN), chain.manifest(stage, *UNEVEN)
    one = load_file(alone / "model" / "model.safetensors")
    alone.rename(chain.root / "alone")
    ran = command(*TINY, f"outputs={chain.root}", f"stage={stage}", *UNEVEN, *TWO)
    assert ran.returncode == 0, ran.stderr
    assert "has moved on" not in ran.stderr, "its processes wait for each other, but not for long"
    two = load_file(chain.folder(stage, *UNEVEN) / "model" / "model.safetensors")
    together = chain.manifest(stage, *UNEVEN)
    assert (manifest["metrics"]["processes"], together["metrics"]["processes"]) == (1, 2)
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-5, rtol=0), name
    figures = manifest["metrics"]
    assert together["metrics"]["eval_loss"] == pytest.approx(figures["eval_loss"], abs=1e-5)
    points = [
        json.loads(line)
        for line in (chain.root / "alone" / "curves.jsonl").read_text().splitlines()
    ]
    two_process_lines = (chain.folder(stage, *UNEVEN) / "curves.jsonl").read_text().splitlines()
    for point, single_point in zip(
        [json.loads(line) for line in two_process_lines], points, strict=True
    ):
        assert point["step"] == single_point["step"]
        for name in ("loss", "num_tokens", "eval_loss"):
            assert point.get(name) == pytest.approx(single_point.get(name), abs=1e-5), (
                name,
                point["step"],
            )
    answers = [
        [(s.step, s.id) for s in read_samples(f)]
        for f in (chain.folder(stage, *UNEVEN), chain.root / "alone")
    ]
    assert answers[0] == answers[1] != [], "the first process answers, and once"
    lines = (chain.folder(stage, *UNEVEN) / "samples.jsonl").read_text().splitlines()
    assert len(lines) == len(answers[0])


@pytest.mark.slow
def test_two_processes_train_the_reward_model_that_one_does(
    trained_alone: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(trained_alone, tmp_path / "outputs", symlinks=True)
    chain, overrides = Chain(root), ("stage=reward", *UNEVEN)
    build(root, *overrides)
    alone, manifest = chain.folder("reward", *overrides), chain.manifest("reward", *overrides)
    one = load_file(alone / "model" / "model.safetensors")
    alone.rename(root / "alone")
    ran = command(
        *TINY,
        f"outputs={root}",
        *overrides,
        *TWO,
        "reward.runtime.token_budget=70",
    )
    assert ran.returncode == 0, ran.stderr
    two = load_file(chain.folder("reward", *overrides) / "model" / "model.safetensors")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 1e-5
    together = chain.manifest("reward", *overrides)
    assert (manifest["metrics"]["processes"], together["metrics"]["processes"]) == (1, 2)
    assert together["metrics"]["accuracy"] == manifest["metrics"]["accuracy"]
    assert together["metrics"]["eval_loss"] == pytest.approx(
        manifest["metrics"]["eval_loss"], abs=1e-5
    )


@pytest.mark.parametrize(
    ("override", "pattern"),
    [
        pytest.param("launch=fsdp", "launch=fsdp shards a model over GPUs", marks=pytest.mark.slow),
        pytest.param("sft.learning_rate=1e6", "training diverged", marks=pytest.mark.slow),
    ],
)
def test_an_error_in_a_process_is_told_in_one_line_and_ends_all(
    override: str, pattern: str, chain: Chain
) -> None:
    without(chain, "sft")
    ran = command(*TINY, f"outputs={chain.root}", "stage=sft", *TWO, override)
    assert ran.returncode != 0
    assert "Traceback" not in ran.stderr
    assert [line for line in ran.stderr.splitlines() if line.startswith(f"error: {pattern}")]
    assert not running(str(chain.root))


@pytest.mark.slow
@pytest.mark.parametrize("resumed_by", [1, 2])
def test_a_killed_process_ends_the_others_and_is_told(resumed_by: int, chain: Chain) -> None:
    shorter = "sft.epochs=3"
    build(chain.root, "stage=sft", shorter)
    alone = load_file(chain.folder("sft", shorter) / "model" / "model.safetensors")
    shutil.rmtree(chain.folder("sft", shorter))
    partial = Store(chain.root).partial(nodes(chain.root, shorter)["sft"])
    started = [sys.executable, "run.py", *TINY, f"outputs={chain.root}", "stage=sft", shorter, *TWO]
    parent = subprocess.Popen(
        [*started, "sft.runtime.save_steps=20"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: list((partial / SCRATCH).glob("checkpoints/*/complete.json")))
    workers = running(f"stages.launch.worker {partial}")
    assert len(workers) == 2
    assert "libtorch" not in Path(f"/proc/{parent.pid}/maps").read_text(), (
        "the workers alone load it"
    )
    assert "libtorch" in Path(f"/proc/{workers[1]}/maps").read_text()
    os.kill(workers[1], signal.SIGKILL)
    _, error_text = parent.communicate(timeout=PATIENCE)
    assert parent.returncode != 0
    assert "error: a process was killed" in error_text
    assert not running(f"stages.launch.worker {partial}")

    # The resume is within the second epoch, in which the rows have another order.
    build(chain.root, "stage=sft", shorter, *(TWO if resumed_by == 2 else ()))
    assert len(chain.manifest("sft", shorter)["attempts"]) == 2
    resumed = load_file(chain.folder("sft", shorter) / "model" / "model.safetensors")
    assert all(torch.allclose(alone[name], resumed[name], atol=1e-5, rtol=0) for name in alone)


def listening(processes: list[int]) -> set[str]:
    """Return the addresses on which these processes listen, in the notation of /proc."""
    sockets = set()
    for pid in processes:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                sockets.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in sockets:  # LISTEN
                addresses.add(local.partition(":")[0])
    return addresses


IPV4_HERE, IPV6_HERE = "0100007F", "00000000000000000000000001000000"  # 127.0.0.1 and ::1


@pytest.mark.slow
def test_a_killed_parent_leaves_its_work_to_the_next_command(chain: Chain) -> None:
    """Check that the children of a killed parent finish under the node's lock, and that their result is used."""
    longer = "sft.epochs=24"  # so that it still trains when the next command comes
    store, node = Store(chain.root), nodes(chain.root, longer)["sft"]
    partial = store.partial(node)
    line = [
        sys.executable,
        "run.py",
        *TINY,
        f"outputs={chain.root}",
        "stage=sft",
        *TWO,
        "sft.runtime.save_steps=8",
    ]
    line += [longer]
    parent = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: list((partial / SCRATCH).glob("checkpoints/*/complete.json")))
    agents, workers = (running(f"stages.launch.{who} {partial}") for who in ("agent", "worker"))
    addresses = listening([parent.pid, *agents, *workers])
    parent.kill()
    parent.wait()
    assert IPV4_HERE in addresses and addresses <= {IPV4_HERE, IPV6_HERE}
    assert (len(agents), len(workers)) == (1, 2), "the children go on"
    assert store.is_locked("sft", node.fingerprint)
    ran = command(*line[2:])
    assert ran.returncode == 0, ran.stderr
    assert f"is being built by process {parent.pid} " in ran.stdout and "waits for it" in ran.stdout
    assert "loss" not in ran.stderr, "nobody trains again"
    manifest = chain.manifest("sft", longer)
    assert manifest["metrics"]["processes"] == 2 and len(manifest["attempts"]) == 2
    assert not partial.exists() and not store.is_locked("sft", node.fingerprint)


@pytest.mark.slow
def test_a_result_of_another_job_is_not_taken(chain: Chain, tmp_path: Path) -> None:
    without(chain, "sft")
    store, node = Store(chain.root), nodes(chain.root, *TWO)["sft"]
    scratch = store.partial(node) / SCRATCH
    with store.claim(node):
        (scratch / job_file.JOB).write_text("{}")
        (scratch / job_file.RESULT).write_text(
            json.dumps({"metrics": {"summary": "another's"}, "warnings": []})
        )
    build(chain.root, "stage=sft", *TWO)
    assert chain.manifest("sft")["metrics"]["processes"] == 2


@pytest.mark.extended
def test_a_killed_agent_ends_its_workers(chain: Chain) -> None:
    without(chain, "sft")
    store, node = Store(chain.root), nodes(chain.root)["sft"]
    partial = store.partial(node)
    line = [sys.executable, "run.py", *TINY, f"outputs={chain.root}", "stage=sft", *TWO]
    parent = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
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
        ("192.0.2.1:29477", "node 0 cannot listen there"),
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
    rendezvous = (
        "launch=ddp",
        "launch.processes=1",
        "launch.nodes=2",
        "launch.rendezvous=127.0.0.1:29477",
    )
    sizes = ("sft.runtime.micro_batch=4", "dpo.runtime.micro_batch=2")
    line = [
        sys.executable,
        "run.py",
        *TINY,
        f"outputs={chain.root}",
        "stage=dpo",
        *rendezvous,
        *sizes,
    ]
    pipe = subprocess.PIPE
    pair = [
        subprocess.Popen(
            [*line, f"launch.node_rank={rank}"], cwd=ROOT, stderr=pipe, stdout=pipe, text=True
        )
        for rank in (1, 0)
    ]
    ends = [process.communicate(timeout=PATIENCE) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], ends
    assert "node 1 of 2" in ends[0][0] + ends[0][1]
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
    rendezvous = (
        "launch=ddp",
        "launch.nodes=2",
        "launch.node_rank=1",
        "launch.rendezvous=127.0.0.1:1",
    )
    with pytest.raises(UserError, match=r"node 0 .* dpo "):
        build(chain.root, "stage=dpo", *rendezvous, "dpo.runtime.micro_batch=1")


def test_a_node_that_follows_needs_no_training_that_node_0_does_not_need(chain: Chain) -> None:
    """Node 0 leaves out what lies before a target that it got from `store.remote`."""
    without(chain, "sft")
    rendezvous = (
        "launch=ddp",
        "launch.nodes=2",
        "launch.node_rank=1",
        "launch.rendezvous=127.0.0.1:1",
    )
    build(
        chain.root,
        "stage=dpo",
        *rendezvous,
        "sft.runtime.micro_batch=1",
        "dpo.runtime.micro_batch=1",
    )
    assert not chain.folder("sft").exists()


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("launch.processes=3",), "sft.batch_size=16: this is not a multiple of 3 processes"),
        (("launch.nodes=2",), "needs launch.rendezvous=HOST:PORT"),
        (("launch.node_rank=1",), "launch.node_rank=1 must be below"),
        (("sft.adapter=qlora", "launch=fsdp"), "sft.adapter=qlora cannot be sharded"),
        (("sft.adapter=continued",), "SFT can only use none, lora, qlora"),
        (("dpo.adapter=continued",), "Set sft.adapter=lora"),
    ],
)
def test_what_cannot_be_launched_is_told(
    arguments: tuple[str, ...], pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # whatever extra is asked for is there
    monkeypatch.setattr(constraints, "find_spec", lambda package: package)
    assert pattern in refused(*TINY, f"outputs={tmp_path}", *TWO, *arguments)
    assert not Chain(tmp_path).count(), "before anything is built"


@pytest.mark.parametrize(("version", "is_refused"), [("2.11.0+cu130", True), ("2.13.0", False)])
def test_fsdp_needs_a_pytorch_that_makes_weights_whole_after_an_evaluation(
    version: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_needs, "version", lambda package: version)
    cfg = settings(*TINY, "launch=fsdp", "launch.processes=2")
    with (
        pytest.raises(UserError, match=r"PyTorch 2\.13") if is_refused else contextlib.nullcontext()
    ):
        machine_needs.validate_sharding(cfg)


def test_a_worker_ends_the_threads_of_gloo(tmp_path: Path) -> None:
    def gloo_threads() -> list[Path]:
        names = Path("/proc/self/task").glob("*/comm")
        return [name for name in names if "gloo" in name.read_text(encoding="utf-8")]

    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    cycle = [distributed.group.WORLD]  # as a trainer is one
    cycle.append(cycle)
    del cycle
    for _ in range(500):  # a thread names itself after it has begun
        if gloo_threads():
            break
        time.sleep(0.01)
    assert gloo_threads()
    worker.end_communication()
    assert not gloo_threads()
    worker.end_communication()


@pytest.mark.parametrize(
    "label", [kind() for kind in LABELS.values() if kind is not PreferenceFile]
)
def test_another_process_reads_the_label_of_grpo_with_the_class_of_its_labeler(
    label: Label,
) -> None:
    block = ScoredGRPO(**vars(settings(*TINY).grpo), label=label)
    assert read_block(ScoredGRPO, json.loads(json.dumps(asdict(block)))) == block
