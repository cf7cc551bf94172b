"""Tests of odd values in config.json: an error of one line names file and key as soon as the folder is read."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.hardware import model_shape
from stages.models.loading import load_model
from stages.store.sealed_json import Damaged

NAN = float("nan")
OF_AMOUNTS = (0, 1.5, "64", [], True, 10**12, NAN)
DROPPED = object()
# No model has these sizes: an error names file and key before any library reads them.
REFUSED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), (*OF_AMOUNTS, None)),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), (*OF_AMOUNTS, None)),
    **dict.fromkeys(("num_key_value_heads", "head_dim"), OF_AMOUNTS[1:]),
    "max_position_embeddings": (-1, 1.5, "2048", [], {}, True, 10**30, NAN),
    "model_type": (None, "", 3, [], {}, DROPPED),
    "text_config": (3, "x", [1], {"hidden_size": "64"}),
}
# The library that reads config.json, or the weights, contradict these values: loading the model fails.
CONTRADICTED: dict[str, tuple[Any, ...]] = {
    "vocab_size": (512, 2000),
    "hidden_size": (32,),
    "num_hidden_layers": (1, 3),
    "num_attention_heads": (3, 8),
    "num_key_value_heads": (1,),
    "model_type": ("nope", "qwen3"),
    "hidden_act": ("nope", []),
    "rms_norm_eps": ("x",),
    "initializer_range": (-1.0,),
    "tie_word_embeddings": (False,),
    "attention_bias": (True,),
    "rope_parameters": ({"rope_type": "nope", "rope_theta": 1e4}, 3),
    "dtype": ("float99",),
    "quantization_config": ({"quant_method": "gptq"},),
    "layer_types": (["x", "y"],),
}


def write(model: Path, folder: Path, key: str, value: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    config[key] = value
    if value is DROPPED:
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def folder(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the tiny base, and a copy of it for another config."""
    model = next((built / "base").glob("*/model"))
    return model, Path(shutil.copytree(model, tmp_path_factory.mktemp("odd") / "model"))


def odd_values(table: dict[str, tuple[Any, ...]]) -> Iterator[tuple[str, Any]]:
    for key, values in table.items():
        for value in values:
            yield key, value


def test_a_value_that_no_model_has_is_refused_by_file_and_key(folder: tuple[Path, Path]) -> None:
    model, copy = folder
    for key, value in odd_values(REFUSED):
        write(model, copy, key, value)
        with pytest.raises(Damaged) as error:
            model_shape.read_config(copy)
        line = str(error.value)
        assert line.startswith(f"{copy / 'config.json'} is damaged: ") and "\n" not in line
        names = [key, "hidden_size"]  # the second, inside of text_config
        assert any(f" {name}=" in line or f" {name} is missing" in line for name in names), line


def test_a_config_that_its_weights_contradict_is_refused_as_the_model_is_loaded(
    folder: tuple[Path, Path],
) -> None:
    model, copy = folder
    for key, value in odd_values(CONTRADICTED):
        write(model, copy, key, value)
        with pytest.raises(UserError, match=str(copy)):
            load_model(copy)
