"""Tests of `launch=ray`: two Ray nodes, in a network namespace of their own, compute what one process does. One node
is killed, and a block ends its processes."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from stages.config.installation import ROOT, install_command
from stages.extras import ray
from stages.hardware import machine
from stages.store.sealed_json import file_digest
from tests.helpers import TINY, Chain, build, nodes, refused
from tests.launch.test_divided import SMALL
from tests.launch.test_launch import wait_for

NAMESPACE = ("unshare", "-rnpf", "--mount-proc", "--kill-child")
REWARDS = (
    "label=reward_model",
    "reward.source.path=stages/tasks/toy_preferences.jsonl",
    "reward.max_length=256",
)
REWARDS += ("label.runtime.shard_size=40",)
PORT = 6399
# Every process of a node notes the blocks that it saves, and takes its time. At a fatal block it dies before.
NOTING = """
import os, sys
if "NODE" in os.environ and any(word.endswith("default_worker.py") for word in sys.orig_argv):
    import signal, time
    from pathlib import Path
    from stages.store import shards
    save, notes = shards.save, Path(os.environ["NOTES"])
    def noted(path, records, kind):
        time.sleep(0.5)
        if (notes / path.stem[:12]).exists():
            (notes / f"death-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        save(path, records, kind)
        with open(notes / "saved", "a") as file:
            print(os.environ["NODE"], os.getpid(), path.name, file=file)
    shards.save = noted
"""


def has_namespaces() -> bool:
    """Return True if this user may have namespaces for the network and for processes."""
    installed = all(map(shutil.which, ("unshare", "nsenter", "ip")))
    return (
        installed
        and subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Cluster"]:
    """Start a Ray cluster of two nodes with one CPU each. The namespace ends with all its processes."""
    if find_spec("ray") is None:
        pytest.skip(f"needs {install_command('ray')}")
    if not has_namespaces():
        pytest.skip("needs namespaces, as Ray listens on every interface: unshare, nsenter and ip")
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    with tempfile.TemporaryDirectory() as folder:  # a short name, since Ray puts sockets there
        try:
            cluster.start_node(
                "1", "--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}"
            )
            cluster.start_node("2", f"--address=127.0.0.1:{PORT}")
            yield cluster
        finally:
            cluster.namespace.kill()
            cluster.namespace.wait()


class Cluster:
    """Two Ray nodes in a namespace. `notes`: the folder where their processes note what they save."""

    def __init__(self, notes: Path):
        self.notes = notes
        (notes / "sitecustomize.py").write_text(NOTING)
        places = [str(notes), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.environment = {**os.environ, "PYTHONPATH": ":".join(places), "NOTES": str(notes)}
        # Ray's memory monitor would kill processes because of others on this machine.
        self.environment |= {"RAY_memory_monitor_refresh_ms": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        script = "ip link set lo up && echo up && exec sleep infinity"
        self.namespace = subprocess.Popen(
            [*NAMESPACE, "sh", "-c", script], text=True, stdout=subprocess.PIPE
        )
        assert self.namespace.stdout and self.namespace.stdout.readline() == "up\n"
        pid = self.namespace.pid
        [init] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        spaces = ("--user", "--net", "--pid", "--mount", "--preserve-credentials")
        self.enter = ["nsenter", f"--target={init}", f"--wd={ROOT}", *spaces]

    def start_node(self, name: str, *options: str) -> None:
        """Start a node with one CPU."""
        sizes = ("--num-cpus=1", f"--object-store-memory={80 * 2**20}")
        ran = self.run("-m", "ray.scripts.scripts", "start", *sizes, *options, NODE=name)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments in the namespace."""
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        line = [*self.enter, sys.executable, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, cwd=ROOT, env=self.environment | variables, **pipes)

    def kill_node(self, name: str) -> None:
        """Kill all processes of a node at once, as if the machine failed."""
        marks = {f"NODE={name}".encode(), f"NOTES={self.notes}".encode()}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # the process has ended
                if marks <= {*(process / "environ").read_bytes().split(b"\0")}:
                    os.kill(int(process.name), signal.SIGKILL)

    def saved(self) -> list[tuple[str, str, str]]:
        """Return node, process and block of every shard that was saved since the last call of `forget`."""
        file = self.notes / "saved"
        return (
            [tuple(line.split()) for line in file.read_text().splitlines()] if file.exists() else []
        )

    def forget(self) -> None:
        for note in {*self.notes.iterdir()} - {self.notes / "sitecustomize.py"}:
            note.unlink() if note.is_file() else shutil.rmtree(note)


def line(chain: Chain, stage: str, *overrides: str) -> list[str]:
    return [
        "run.py",
        *TINY,
        f"outputs={chain.root}",
        f"stage={stage}",
        *SMALL,
        "launch=ray",
        *overrides,
    ]


def built_alone(chain: Chain, name: str, file: str, *overrides: str) -> str:
    """Return the digest of a node's file that one process writes, and remove the node."""
    folder = chain.folder(name, *overrides)
    shutil.rmtree(folder, ignore_errors=True)
    build(chain.root, f"stage={name.partition('_')[0]}", *SMALL, *overrides)
    digest = file_digest(folder / file)
    shutil.rmtree(folder)
    return digest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "file", "overrides"),
    [
        ("sample", "candidates", ()),
        ("label", "judgements", REWARDS),
    ],
)
def test_tasks_compute_what_one_process_does(
    stage: str, file: str, overrides: tuple[str, ...], cluster: Cluster, chain: Chain
) -> None:
    cluster.forget()
    name = next(each for each in nodes(chain.root) if each.partition("_")[0] == stage)
    alone = built_alone(chain, name, f"{file}.parquet", *overrides)
    ran = cluster.run(*line(chain, stage, *overrides))
    assert ran.returncode == 0, ran.stderr
    assert file_digest(chain.folder(name, *overrides) / f"{file}.parquet") == alone
    saved = cluster.saved()
    blocks, processes = (
        {*column} for column in (list(zip(*saved, strict=True))[2], [each[:2] for each in saved])
    )
    assert len(saved) == len(blocks) > 2, "no block is saved twice, none by the parent"
    assert {node for node, _ in processes} == {"1", "2"} and len(processes) == 2, (
        "a process keeps its model"
    )


@pytest.mark.slow
def test_a_node_is_killed_and_the_others_compute_its_blocks(cluster: Cluster, chain: Chain) -> None:
    """Keep this test the last one: the cluster has one node afterwards."""
    cluster.forget()
    alone = built_alone(chain, "sample", "candidates.parquet")
    command = cluster.start(*line(chain, "sample"))
    wait_for(lambda: "2" in {node for node, *_ in cluster.saved()} or command.poll() is not None)
    cluster.kill_node("2")
    out, err = command.communicate(timeout=600)
    assert command.returncode == 0, out + err
    assert file_digest(chain.folder("sample") / "candidates.parquet") == alone
    blocks = [block for *_, block in cluster.saved()]
    assert len(blocks) == len({*blocks}) > 2
    assert [node for node, *_ in cluster.saved()].count("2") < len(blocks) / 2, (
        "it was killed in the middle"
    )


@pytest.mark.parametrize(
    ("override", "pattern"),
    [
        ("launch.address=local", "launch.address=local is neither auto nor HOST:PORT"),
        ("launch.nodes=2", "Use launch.nodes=1"),
        ("launch.num_gpus=1", "launch.num_gpus=1: "),
    ],
)
def test_what_ray_cannot_do_is_refused(
    override: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # every extra is installed
    monkeypatch.setattr(ray, "find_spec", lambda package: package)
    monkeypatch.setattr(machine, "may_have_gpu", lambda: False)
    several = ("launch.rendezvous=127.0.0.1:29500",)
    assert pattern in refused(*TINY, "launch=ray", *several, override)


def test_without_ray_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "find_spec", lambda package: None)
    assert install_command("ray") in refused(*TINY, "launch=ray", f"outputs={tmp_path}")
    assert not Chain(tmp_path).count(), "before anything is built"
