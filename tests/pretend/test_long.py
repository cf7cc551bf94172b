"""Long tests: everything that reads a model runs on the pretended accelerator, in several processes too."""

from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers import TINY, Chain, build, command
from tests.pretend.test_chain import weight_gap

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "overrides",
    [
        ("stage=report",),
        ("stage=report", "precision=bf16"),
        ("stage=reward",),
        ("stage=dpo", "sft.adapter=lora", "dpo.adapter=lora"),
        ("stage=dpo", "sft.packing=true", "sft.max_length=128", "dpo.forward=padded"),
    ],
    ids=" ".join,
)
def test_chains_run_without_a_tensor_on_the_wrong_device(
    overrides: tuple[str, ...], pretend: ModuleType, tmp_path: Path
) -> None:
    with pretend.strict():
        build(tmp_path / "outputs", *overrides)


@pytest.mark.parametrize("launch", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("stage", "overrides"), [("sft", ()), ("dpo", ()), ("dpo", ("sft.adapter=lora", "dpo.adapter=lora"))]
)
def test_two_processes_train_what_one_does(
    stage: str, overrides: tuple[str, ...], launch: str, pretend: ModuleType, tmp_path: Path
) -> None:
    """The pretended devices of the processes have their own collectives, over gloo."""
    root, options = tmp_path / "outputs", {"env": pretend.environment(), "timeout": 600}
    line = (*TINY, f"outputs={root}", f"stage={stage}", *overrides)
    one_process = command(*line, **options)
    assert one_process.returncode == 0, one_process.stderr
    folder = Chain(root).folder(stage, *overrides)
    folder.rename(tmp_path / "alone")
    two = command(*line, f"launch={launch}", "launch.processes=2", **options)
    assert two.returncode == 0, two.stderr
    together = Chain(root).manifest(stage, *overrides)["metrics"]
    assert (together["processes"], together["device"]) == (2, "pretend:0")
    assert weight_gap(tmp_path / "alone", folder) < 1e-5
