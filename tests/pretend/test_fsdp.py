"""A model sharded over two pretended accelerators trains what one trains."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import TINY, Chain, command
from tests.pretend import device

pytestmark = pytest.mark.slow  # two processes that load TRL

SHARDED = ("launch=fsdp", "launch.processes=2")


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
