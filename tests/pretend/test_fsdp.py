"""A model sharded over two pretended accelerators trains what one trains, and holds half of it."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import ROOT, TINY, Chain, command
from tests.pretend import device

pytestmark = pytest.mark.slow  # two processes that load TRL

SHARDED = ("launch=fsdp", "launch.processes=2")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def first_steps(processes: int, stage: str, root: Path, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """Return what each process of a training finds at the first optimizer step (`first_step.py`)."""
    folder.mkdir()
    files = [folder / f"{rank}.pt" for rank in range(processes)]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    workers = []
    for rank, file in enumerate(files):
        place = common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
        variables = device.environment(**(place if processes > 1 else {}))
        arguments = [sys.executable, "-m", "tests.pretend.first_step", stage, root, file, *overrides]
        workers.append(subprocess.Popen(arguments, cwd=ROOT, env=variables))
    assert [worker.wait(300) for worker in workers] == [0] * processes
    return [torch.load(file) for file in files]


def gap(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Return the largest difference of two gradients of a parameter, relative to its norm."""
    return max(float((a - b).norm() / a.norm()) for a, b in zip(one, other, strict=True))


FLOWS = {"sft": ("sft",), "dpo": ("dpo",), "adapter": ("dpo", "dpo.adapter=lora")}


@pytest.mark.parametrize("flow", FLOWS)
def test_two_sharded_processes_train_what_one_does(flow: str, compiled: Path, chain: Chain) -> None:
    stage, *overrides = FLOWS[flow]
    built = list[Path]()
    for launch in ((), SHARDED):
        shutil.rmtree(chain.folder(stage, *overrides), ignore_errors=True)
        options = [*TINY, f"outputs={chain.root}", f"stage={stage}", *overrides, *launch]
        ran = command(*options, env=device.environment())
        assert ran.returncode == 0, ran.stderr
        built.append(chain.root / f"{stage}-{len(built)}")
        shutil.copytree(chain.folder(stage, *overrides) / "model", built[-1])
        metrics = chain.manifest(stage, *overrides)["metrics"]
        assert metrics["device"].startswith("pretend")
        assert metrics["processes"] == (2 if launch else 1)
    one, two = (load_file(folder / "model.safetensors") for folder in built)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], atol=1e-5, rtol=0), name


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_sharding_leaves_bf16_autocasts(stage: str, compiled: Path, chain: Chain, tmp_path: Path) -> None:
    """Gradients of a step in bf16 depend on its division into micro-batches. Sharding changes them no more than that;
    all of FSDP2's bf16 changes them by much more."""
    shared = [f"{stage}.precision=bf16"]
    divided = [*shared, f"{stage}.runtime.micro_batch=2"]
    (one,) = first_steps(1, stage, chain.root, tmp_path / "one", *divided)
    (other,) = first_steps(1, stage, chain.root, tmp_path / "other", *shared, f"{stage}.runtime.micro_batch=4")
    two, _ = first_steps(2, stage, chain.root, tmp_path / "two", *divided, *SHARDED)
    assert gap(one["gradients"], two["gradients"]) < 2 * gap(one["gradients"], other["gradients"])


def test_a_sharded_process_holds_half(compiled: Path, chain: Chain, tmp_path: Path) -> None:
    """Only the first process reads weights, and between micro-batches each holds its half of the gradients."""
    options = ["sft.runtime.micro_batch=1", *SHARDED]
    first, second = first_steps(2, "sft", chain.root, tmp_path / "two", *options)
    whole = sum(gradient.nbytes for gradient in first["gradients"])
    assert (first["read"], second["read"]) == (whole, 0)
    for process in (first, second):
        # Half of the weights and, after a micro-batch, half of the gradients; the rows are a few bytes.
        assert whole <= process["before_forward"][1] < 1.1 * whole
