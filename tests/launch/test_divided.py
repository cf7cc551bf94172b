"""Tests of stages whose items several real processes divide: equal results for any number of processes and after a
kill, no block written twice, and an error that names the block that ends its processes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import submitit

from stages.config.installation import ROOT
from stages.store.records import Candidate, PairLogProbs, load
from stages.store.store import Store
from stages.store.workspace import SCRATCH
from tests.helpers import TINY, Chain, build, command, nodes

SMALL = (
    "sample.runtime.shard_size=8",
    "answer.runtime.shard_size=8",
    "reference.runtime.shard_size=4",
)
SMALL += ("reference.runtime.token_budget=400",)
# Each worker notes the blocks that it saves. The first that saves a block of `FATAL` dies before, `DEATHS` times.
KILLING = """
import os
if "RANK" in os.environ:
    import signal
    import time
    from pathlib import Path
    from stages.store import shards
    save, notes = shards.save, Path(os.environ["NOTES"])
    def noted(path, records, kind):
        if os.environ["FATAL"] in path.name and len([*notes.glob("death-*")]) < int(os.environ["DEATHS"]):
            (notes / f"death-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ["DELAY"]))
        with open(notes / "saved", "a") as file:
            print(path.name, file=file)
        save(path, records, kind)
    shards.save = noted
"""


def killing(
    folder: Path, fatal: str = "block-000001", deaths: int = 1, delay: float = 0.0
) -> dict[str, str]:
    """Return an environment in which workers note their blocks, each after `delay` seconds, and die at a block."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(KILLING)
    places = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    figures = {"NOTES": str(folder), "FATAL": fatal, "DEATHS": str(deaths), "DELAY": str(delay)}
    return {**os.environ, "PYTHONPATH": ":".join(places), **figures}


def run(
    root: Path, stage: str, processes: int, env: dict[str, str], *overrides: str
) -> subprocess.CompletedProcess[str]:
    several = (f"{stage}.runtime.processes={processes}",)
    return command(
        *TINY, f"outputs={root}", f"stage={stage}", *SMALL, *several, *overrides, env=env
    )


def saved_blocks(folder: Path) -> list[str]:
    return (folder / "saved").read_text().split()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(
    ("stage", "file", "kind"),
    [
        ("sample", "candidates", Candidate),
        ("reference", "logprobs", PairLogProbs),
        ("answer", "answers", Candidate),
    ],
)
def test_processes_compute_what_one_does(
    stage: str, file: str, kind: type, processes: int, chain: Chain, tmp_path: Path
) -> None:
    node = next(name for name in nodes(chain.root) if name.partition("_")[0] == stage)
    shutil.rmtree(chain.folder(node))
    build(chain.root, f"stage={stage}", *SMALL)
    alone = load(chain.folder(node) / f"{file}.parquet", kind)
    shutil.rmtree(chain.folder(node))
    ran = run(chain.root, stage, processes, killing(tmp_path / "notes"))
    assert ran.returncode == 0, ran.stderr
    assert load(chain.folder(node) / f"{file}.parquet", kind) == alone
    saved = saved_blocks(tmp_path / "notes")
    assert len(saved) == len({*saved}) > 1
    assert len([*(tmp_path / "notes").glob("death-*")]) == 1


@pytest.mark.slow
def test_two_commands_as_nodes_divide_the_blocks(chain: Chain, tmp_path: Path) -> None:
    """Submitit starts two commands on one store, as the jobs of a Slurm array, which do not connect to each other."""
    shutil.rmtree(chain.folder("sample"))
    build(chain.root, "stage=sample", *SMALL)
    alone = load(chain.folder("sample") / "candidates.parquet", Candidate)
    shutil.rmtree(chain.folder("sample"))
    line = [
        *TINY,
        f"outputs={chain.root}",
        "stage=sample",
        *SMALL,
        "launch=ddp",
        "launch.processes=1",
        "launch.nodes=2",
    ]
    line += ["launch.rendezvous=localhost:29500"]
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=5)
    jobs = []
    for rank, notes in ((1, tmp_path / "notes"), (0, tmp_path / "notes-0")):
        env = killing(notes, deaths=0, delay=3.0)  # so that the other node has loaded its model
        task = [sys.executable, "run.py", *line, f"launch.node_rank={rank}"]
        jobs.append(executor.submit(submitit.helpers.CommandFunction(task, cwd=ROOT, env=env)))
    for job in jobs:
        job.result()  # raises if the command failed
    assert load(chain.folder("sample") / "candidates.parquet", Candidate) == alone
    saved = saved_blocks(tmp_path / "notes") + saved_blocks(tmp_path / "notes-0")
    assert len(saved) == len({*saved}) > len(saved_blocks(tmp_path / "notes")) > 0, (
        "each node has saved some"
    )


@pytest.mark.slow
def test_a_block_that_ends_its_processes_is_named_and_the_others_are_kept(
    chain: Chain, tmp_path: Path
) -> None:
    shutil.rmtree(chain.folder("sample"))
    ran = run(chain.root, "sample", 2, killing(tmp_path / "notes", deaths=99))
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert re.search(r"error: .*block-000001-[0-9a-f]{12} \(8 ids: [0-9a-f]{16}, ", ran.stderr), (
        ran.stderr
    )
    partial = Store(chain.root).partial(nodes(chain.root)["sample"])
    saved_shards = [*(partial / SCRATCH / "shards").glob("block-*.parquet")]
    assert len([*(tmp_path / "notes").glob("death-*")]) == 2 and len(saved_shards) >= 2
    build(chain.root, "stage=sample", *SMALL)  # the same command resumes
    assert len(saved_blocks(tmp_path / "notes")) == len(saved_shards)
