"""Tests of odd values in config.json: an error of one line names file and key as soon as the folder is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.hardware import model_shape
from stages.models.loading import load_model
from stages.store.sealed_json import Damaged
from tests.helpers import TINY, refused

NAN = float("nan")
OF_AMOUNTS = (0, -1, 1.5, "64", [], {}, True, 10**7, 10**12, 10**30, NAN, ["64"])
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
    "vocab_size": (512, 2000, DROPPED),
    "hidden_size": (32, 65, DROPPED),
    "intermediate_size": (191, DROPPED),
    "num_hidden_layers": (1, 3),
    "num_attention_heads": (3, 8),
    "num_key_value_heads": (0, 1, 3, 4),
    "head_dim": (0, 15, 32),
    "model_type": ("nope", "qwen3", "bert"),
    "hidden_act": ("nope", 3, [], "", {}),
    "rms_norm_eps": (None, "x", [], True),
    "initializer_range": ("x", -1.0, NAN, 5),
    "attention_dropout": ("x", []),
    "tie_word_embeddings": ("yes", 3, False),
    "attention_bias": ("x", True),
    "mlp_bias": ("x", True),
    "rope_parameters": (
        {"rope_type": "nope", "rope_theta": 1e4},
        {"rope_type": ["x"]},
        {"rope_theta": "x"},
        3,
        [],
        "x",
    ),
    "eos_token_id": ("x", {}, 1.5, NAN),
    "bos_token_id": ("x", [1]),
    "pad_token_id": ("x",),
    "use_cache": ("x",),
    "dtype": ("float99", []),
    "quantization_config": ({"quant_method": "gptq"}, {"load_in_8bit": True}, 3, []),
    "text_config": ({"hidden_size": 3},),
    "id2label": (3,),
    "attribute_map": (3,),
    "layer_types": (["x", "y"], 3, "x", [3]),
}


def write(model: Path, folder: Path, key: str, value: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    config.pop(key, None)
    (folder / "config.json").write_text(
        json.dumps(config | ({} if value is DROPPED else {key: value}))
    )


def inside(value: Any) -> list[str]:
    """Return the keys of an object, one of which may have the odd value."""
    return [*value] if isinstance(value, dict) else []


@pytest.fixture(scope="module")
def folder(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the tiny base, and a copy of it for another config."""
    model = next((built / "base").glob("*/model"))
    return model, Path(shutil.copytree(model, tmp_path_factory.mktemp("odd") / "model"))


def test_a_value_that_no_model_has_is_refused_by_file_and_key(folder: tuple[Path, Path]) -> None:
    model, copy = folder
    accepted = []
    for key, value in ((key, value) for key, values in REFUSED.items() for value in values):
        write(model, copy, key, value)
        try:
            model_shape.read_config(copy)
        except Damaged as error:
            line = str(error)
            assert line.startswith(f"{copy / 'config.json'} is damaged: ") and "\n" not in line
            assert any(
                f" {name}=" in line or f" {name} is missing" in line
                for name in (key, *inside(value))
            ), line
        else:
            accepted.append((key, value))
    assert not accepted


def test_a_config_that_its_weights_contradict_is_refused_as_the_model_is_loaded(
    folder: tuple[Path, Path],
) -> None:
    model, copy = folder
    accepted = []
    for key, value in ((key, value) for key, values in CONTRADICTED.items() for value in values):
        write(model, copy, key, value)
        try:
            load_model(copy)
        except UserError as error:
            assert str(copy) in str(error)
            assert "\n" not in str(error)
        else:
            accepted.append((key, value))
    assert not accepted


@pytest.mark.extended
def test_a_broken_config_is_told_before_anything_is_built(
    folder: tuple[Path, Path], tmp_path: Path
) -> None:
    model, copy = folder
    for content in ("", "null", "[]", "{}", "[" * 100_000, "// no JSON\n{}", "\0"):
        (copy / "config.json").write_text(content)
        message = refused(*TINY, f"outputs={tmp_path}", f"model.path={copy}", "stage=report")
        assert message.startswith(f"{copy / 'config.json'} is damaged: "), message
    write(model, copy, "vocab_size", "1024")
    message = refused(*TINY, f"outputs={tmp_path}", f"model.path={copy}", "stage=report")
    assert "vocab_size='1024': " in message
    assert not [*tmp_path.glob("*/*/manifest.json")]
