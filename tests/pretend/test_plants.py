"""A tensor on the wrong device, anywhere in the product, stops the flow that runs the place."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.helpers import Chain, slow_but
from tests.pretend.flows import flow
from tests.pretend.plants import PLANTS, Plant, planted

pytestmark = pytest.mark.extended

QUICK = tuple({plant.flow: plant for plant in PLANTS}.values())  # one of each flow


# The second wording is torch's own, of `index_copy_` and others.
@pytest.mark.parametrize(
    "plant", slow_but(PLANTS, *QUICK), ids=lambda plant: f"{plant.file}: {plant.right}"
)
def test_a_planted_mistake_is_refused(
    plant: Plant, pretend: ModuleType, built: Path, tmp_path: Path
) -> None:
    with (
        pretend.strict(),
        planted(plant),
        pytest.raises(Exception, match=r"(on|in) the same device"),
    ):
        flow(plant.flow, built, tmp_path / "out")


# The other flows are part of the chain that test_chain.py builds.
@pytest.mark.parametrize(
    "name", slow_but(sorted({plant.flow for plant in PLANTS}), "eval", "packed sft")
)
def test_without_mistakes_the_flows_run(
    name: str, pretend: ModuleType, built: Path, tmp_path: Path
) -> None:
    """The model is on the device too: with the model and all its inputs on the CPU, nothing would be refused."""
    with pretend.strict():
        flow(name, built, tmp_path / "out")
    weights = Chain(built).folder("sft") / "model" / "model.safetensors"
    assert torch.get_device_module("pretend").max_memory_allocated() > weights.stat().st_size
