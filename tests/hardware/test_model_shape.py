"""Tests of the shapes of models that groups publish: nobody asks the hub for them."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from stages.config.blocks.models import Model
from stages.config.schema import CONF
from stages.hardware.model_shape import ModelShape
from stages.preflight import model_files
from tests.helpers import settings

# Parameters in billions, as their publishers count them.
PUBLISHED = {
    "mistral_7b": 7.24,
    "zephyr_7b_sft": 7.24,
    "llama31_8b": 8.03,
    "llama31_70b": 70.6,
    "llama32_1b": 1.24,
    "qwen3_0p6b": 0.596,
    "smollm2_135m": 0.135,
    "embedded": 0.135,
    "smollm2_360m": 0.362,
}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to read a configuration from the hub."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("a known shape asked the hub")

    monkeypatch.setattr(model_files, "hub_config", refuse)


def test_the_published_shapes_have_the_published_numbers_of_parameters() -> None:
    for name, billions in PUBLISHED.items():
        model = OmegaConf.merge(Model, OmegaConf.load(CONF / "model" / f"{name}.yaml"))
        shape = ModelShape.from_config(model_files.model_config(OmegaConf.to_object(model)) or {})
        assert shape is not None and shape.parameters / 1e9 == pytest.approx(billions, rel=0.01), (
            name
        )


def test_the_shape_of_a_group_does_not_describe_another_path() -> None:
    with pytest.raises(AssertionError, match="asked the hub"):
        model_files.model_config(settings("model=mistral_7b", "model.path=someone/else").model)
