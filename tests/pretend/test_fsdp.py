"""A model sharded over two pretended accelerators trains what one trains, and holds half of it."""

import json
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


def first_steps(
    processes: int, stage: str, root: Path, folder: Path, *overrides: str
) -> list[dict[str, Any]]:
    """Return what each process of a training finds at the first optimizer step (`first_step.py`)."""
    folder.mkdir()
    files = [folder / f"{rank}.pt" for rank in range(processes)]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(processes),
    }
    workers = []
    for rank, file in enumerate(files):
        place = common | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(processes),
        }
        variables = device.environment(**(place if processes > 1 else {}))
        arguments = [
            sys.executable,
            "-m",
            "tests.pretend.first_step",
            stage,
            root,
            file,
            *overrides,
        ]
        workers.append(subprocess.Popen(arguments, cwd=ROOT, env=variables))
    assert [worker.wait(300) for worker in workers] == [0] * processes
    return [torch.load(file) for file in files]


FLOWS = {
    "sft": ("sft",),
    "dpo": ("dpo",),
    "adapter": ("dpo", "dpo.adapter=lora"),
    "grpo": ("grpo", "align=grpo", "grpo.beta=0.1"),
    "grpo_adapter": ("grpo", "align=grpo", "grpo.adapter=lora", "grpo.beta=0.1"),
}


def train_twice(chain: Chain, stage: str, *overrides: str) -> list[Path]:
    """Return the node of one process, and that of two with sharding."""
    trained = list[Path]()
    for launch in ((), SHARDED):
        shutil.rmtree(chain.folder(stage, *overrides), ignore_errors=True)
        options = [*TINY, f"outputs={chain.root}", f"stage={stage}", *overrides, *launch]
        ran = command(*options, env=device.environment(), timeout=900)
        assert ran.returncode == 0, ran.stderr
        metrics = chain.manifest(stage, *overrides)["metrics"]
        assert metrics["device"].startswith("pretend")
        assert metrics["processes"] == (2 if launch else 1)
        trained.append(
            shutil.copytree(chain.folder(stage, *overrides), chain.root / f"{stage}-{len(trained)}")
        )
    return trained


@pytest.mark.parametrize("flow", FLOWS)
def test_two_sharded_processes_train_what_one_does(flow: str, server: None, chain: Chain) -> None:
    nodes = train_twice(chain, *FLOWS[flow])
    one, two = (load_file(node / "model" / "model.safetensors") for node in nodes)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], atol=1e-5, rtol=0), name


def test_sharding_keeps_autocasts_bf16(server: None, chain: Chain) -> None:
    """At the first step, loss and gradient norm are one process's. Without norms and embeddings in fp32, or with
    gradients reduced in bf16, they differ by more than 1e-3."""
    options = ("sft.precision=bf16", "sft.batch_size=32", "sft.runtime.micro_batch=8")
    curves = [
        (node / "curves.jsonl").read_text().splitlines()
        for node in train_twice(chain, "sft", *options)
    ]
    one, two = (
        next(point for point in map(json.loads, curve) if "grad_norm" in point) for curve in curves
    )
    for figure in ("loss", "grad_norm"):
        assert two[figure] == pytest.approx(one[figure], rel=1e-4), figure


def test_a_sharded_process_holds_half(server: None, chain: Chain, tmp_path: Path) -> None:
    """Only the first process reads weights, and between micro-batches each holds its half of the gradients."""
    options = ["sft.runtime.micro_batch=1", *SHARDED]
    first, second = first_steps(2, "sft", chain.root, tmp_path / "two", *options)
    whole = sum(gradient.nbytes for gradient in first["gradients"])
    assert (first["read"], second["read"]) == (whole, 0)
    for process in (first, second):
        # Half of the weights and, after a micro-batch, half of the gradients; the rows are a few bytes.
        assert whole <= process["before_forward"][1] < 1.1 * whole
