"""A sharded training that is killed and resumed ends with the weights of an undisturbed one."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.store.sealed_json import SEAL
from stages.store.store import Store
from stages.store.workspace import SCRATCH
from tests.helpers import ROOT, TINY, Chain, command, nodes
from tests.launch.test_launch import running, wait_for
from tests.pretend import device

pytestmark = pytest.mark.slow  # two processes that load TRL, three times

SHARDED = ("launch=fsdp", "launch.processes=2")
TRAININGS = {
    "sft": ("sft.epochs=3", "sft.runtime.save_steps=20"),
    "dpo": ("dpo.adapter=lora", "dpo.runtime.save_steps=2"),
}


@pytest.mark.parametrize("stage", TRAININGS)
def test_a_killed_sharded_training_resumes_from_the_shares(
    stage: str, server: None, chain: Chain
) -> None:
    overrides = TRAININGS[stage]
    line = [*TINY, f"outputs={chain.root}", f"stage={stage}", *overrides, *SHARDED]
    shutil.rmtree(chain.folder(stage, *overrides), ignore_errors=True)
    undisturbed = command(*line, env=device.environment(), timeout=900)
    assert undisturbed.returncode == 0, undisturbed.stderr
    whole = load_file(chain.folder(stage, *overrides) / "model" / "model.safetensors")
    shutil.rmtree(chain.folder(stage, *overrides))

    partial = Store(chain.root).partial(nodes(chain.root, *overrides)[stage])
    started = [sys.executable, "run.py", *line]
    quiet = subprocess.DEVNULL
    parent = subprocess.Popen(
        started, cwd=ROOT, env=device.environment(), stdout=quiet, stderr=quiet
    )
    wait_for(lambda: list((partial / SCRATCH).glob(f"checkpoints/*/{SEAL}")))
    os.kill(running(f"stages.launch.worker {partial}")[1], signal.SIGKILL)
    assert parent.wait(300) != 0
    assert_shares(next((partial / SCRATCH).glob(f"checkpoints/*/{SEAL}")).parent)

    whole_line = [each for each in line if each not in SHARDED]
    refused = command(*whole_line, env=device.environment(), timeout=900)
    assert refused.returncode == 1 and "is of launch.sharding=fsdp" in refused.stderr

    resumed = command(*line, env=device.environment(), timeout=900)
    assert resumed.returncode == 0, resumed.stderr
    assert len(chain.manifest(stage, *overrides)["attempts"]) == 3
    weights = load_file(chain.folder(stage, *overrides) / "model" / "model.safetensors")
    assert weights.keys() == whole.keys()
    assert all(torch.equal(whole[name], weights[name]) for name in whole)


def assert_shares(checkpoint: Path) -> None:
    """Each process has written its share of weights and optimizer state, and nothing holds them whole."""
    for part in ("pytorch_model_fsdp_0", "optimizer_0"):
        sizes = [
            sum(file.stat().st_size for file in (checkpoint / part).glob(f"__{rank}_*"))
            for rank in (0, 1)
        ]
        assert min(sizes) > 0.4 * sum(sizes)
    weights = sum(
        file.stat().st_size for file in (checkpoint / "pytorch_model_fsdp_0").glob("*.distcp")
    )
    small_files = [file for file in checkpoint.iterdir() if file.is_file()]
    assert max(file.stat().st_size for file in small_files) < weights / 4
