"""Tests of full disks: any failed write ends in one line, loses nothing, and the same command resumes."""

import multiprocessing
import resource
import shutil
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from stages.cli.explain import explain
from stages.store.sealed_json import SEAL
from stages.store.store import Store
from stages.store.workspace import SCRATCH
from tests.helpers import Chain, build, nodes
from tests.pipeline.test_resume import CADENCE


def limited(root: Path, stage: str, size: int, connection: Connection) -> None:
    """Build a stage while no file can grow beyond `size` bytes: the kernel refuses to write, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        build(root, f"stage={stage}", *CADENCE)
    except Exception as error:
        connection.send(explain(error))
    else:
        connection.send("it is built")


@pytest.mark.extended
@pytest.mark.parametrize(
    ("stage", "size"),
    [
        ("base", 0.5),  # safetensors
        ("data", 1e-3),  # Arrow
        ("sft", 1.1),  # torch: the optimizer's state, twice the weights
        ("eval", 0.0),  # Python
    ],
)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    stage: str, size: float, chain: Chain
) -> None:
    node = nodes(chain.root)[stage]
    store = Store(chain.root)
    weights = (chain.folder("base") / "model" / "model.safetensors").stat().st_size
    before = chain.manifest(stage)["digest"]
    shutil.rmtree(store.folder(node))
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    arguments = (chain.root, stage, int(size * weights), sender)
    process = multiprocessing.get_context("fork").Process(target=limited, args=arguments)
    process.start()
    line = receiver.recv()
    process.join()
    assert line is not None, "a traceback"
    assert "the disk is full" in line
    assert "\n" not in line
    assert not store.folder(node).exists()
    begun = list((store.partial(node) / SCRATCH).glob(f"checkpoints/*/{SEAL}"))
    build(chain.root, f"stage={stage}", *CADENCE)
    assert chain.manifest(stage)["digest"] == before
    assert not begun, "the first checkpoint did not fit"
