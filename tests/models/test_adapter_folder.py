"""Tests of odd adapters: an error of one line names file and field before anything is allocated or matched."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from stages.config.errors import UserError
from stages.models.adapter_folder import ADAPTER_WEIGHTS, read_adapter
from stages.models.loading import load_adapter, load_model
from stages.store.source_files import ADAPTER_CONFIG

DROPPED = object()
NAN = float("nan")
BOMB = r"(?:.|[a-z])*(?:.|[a-z])*(?:.|[a-z])*[!?]"
# For fields of any type
ODD: tuple[Any, ...] = (-4, 0, 10**30, 1.5, NAN, "os", [["q_proj"]], [10**9], {"a": {"b": 1}})
# Values that no adapter has
REFUSED: dict[str, tuple[Any, ...]] = {
    "peft_type": (*ODD, None, "IA3", DROPPED),
    "r": (*ODD, None, True, 10**9, 8, DROPPED),
    "lora_alpha": (-4, 0, NAN, float("inf"), "os", [], None, True, DROPPED),
    "lora_dropout": (-0.1, 1, NAN, "os", [], None),
    "bias": (*ODD, None, "evil"),
    "task_type": (*ODD, "SEQ_2_SEQ_LM"),
    "base_model_name_or_path": (3, [], {}, "a\0b", "x" * 5000),
    "target_modules": (*ODD, [], "(", BOMB, ["nope"], ["q_proj"], {"q_proj": 1}),
    "exclude_modules": (3, NAN, [["q_proj"]], {"a": 1}),
    "modules_to_save": (*ODD, ["nope"], ["("]),
    "target_parameters": (3, "os", [["q_proj"]], ["("]),
    "layers_to_transform": (-1, 1.5, "os", [[0]], [10**9], [-1]),
    "layers_pattern": (3, "(", [["layers"]], [BOMB]),
    "rank_pattern": (3, "os", [], {"q_proj": 10**9}, {"q_proj": "4"}, {"(": 4}),
    "alpha_pattern": (3, "os", [], {"q_proj": -1}, {"q_proj": NAN}),
    "trainable_token_indices": (3, "os", [-1], [[1]], {"(": [1]}, {"embed_tokens": [-1]}),
    "init_lora_weights": (3, "os", [], "pissa_niter_999999999"),
    "loftq_config": (3, "os", {"loftq_iter": 10**9}),
    **dict.fromkeys(("use_rslora", "use_dora", "fan_in_fan_out"), (3, "os", [True], {})),
    **dict.fromkeys(
        ("megatron_config", "layer_replication", "alora_invocation_tokens"), ([[0, 9]],)
    ),
    **dict.fromkeys(("arrow_config", "kasa_config", "velora_config"), ({"a": 1}, "os", 3)),
    "auto_mapping": ({"base_model_class": "Model", "parent_library": "os"},),
}


@pytest.fixture(scope="module")
def base(built: Path) -> Path:
    return next((built / "base").glob("*/model"))


@pytest.fixture(scope="module")
def sound(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an adapter that peft has saved."""
    folder = tmp_path_factory.mktemp("adapter") / "sound"
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(load_model(base), lora)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.5)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """Return a copy for another config, or other tensors."""
    return Path(shutil.copytree(sound, tmp_path / "adapter"))


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / ADAPTER_CONFIG).read_text()) | changes
    kept = {field: value for field, value in config.items() if value is not DROPPED}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(kept))


def edit_tensors(folder: Path, change: Any) -> None:
    tensors = change(load_file(folder / ADAPTER_WEIGHTS))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / ADAPTER_WEIGHTS)


@pytest.mark.parametrize("field", REFUSED)
def test_a_value_that_no_adapter_has_is_refused_by_file_and_field(
    field: str, sound: Path, folder: Path
) -> None:
    for value in REFUSED[field]:
        shutil.copy(sound / ADAPTER_CONFIG, folder)
        edit(folder, **{field: value})
        start = time.monotonic()
        with pytest.raises(UserError) as refused:
            read_adapter(folder)
        line = str(refused.value)
        assert line.startswith(f"{folder / ADAPTER_CONFIG}: {field}") and "\n" not in line
        assert time.monotonic() - start < 20, value


def without_a_layer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}


def without_a_factor(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(tensors.items())[1:])


def with_another_tensor(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "other": torch.zeros(1)}


def with_layers_of_a_larger_model(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    deeper = {name.replace("layers.1.", "layers.9."): tensor for name, tensor in tensors.items()}
    return tensors | deeper


def of_a_wider_model(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    wider = {name: torch.cat([t, t], 1) for name, t in tensors.items() if "lora_A" in name}
    return tensors | wider


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (without_a_layer, "layers.1."),
        (without_a_factor, "lora_B"),
        (with_another_tensor, "other"),
        (with_layers_of_a_larger_model, "layers.9."),
        (of_a_wider_model, "lora_A"),
        (lambda tensors: {}, "lora_A"),
    ],
)
def test_tensors_that_the_config_or_the_model_contradicts_are_refused_by_name(
    change: Any, name: str, base: Path, folder: Path
) -> None:
    edit_tensors(folder, change)
    with pytest.raises(UserError) as refused:
        load_adapter(load_model(base), folder)
    line = str(refused.value)
    assert str(folder) in line and name in line and "\n" not in line


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": r".*layers\.\d+\.self_attn\.(q|v)_proj"},
        {"target_modules": ["q_proj", "v_proj", "query"]},
        {"exclude_modules": BOMB},
        {"alpha_pattern": {r"layers\.\d\.self_attn\.q_proj": 8}},
        {"of_a_later_version": {"a": 1}},
    ],
)
def test_what_peft_can_write_merges_as_before(
    changes: dict[str, Any], base: Path, sound: Path, folder: Path
) -> None:
    """A pattern that would need centuries is not matched: the tensors say which layers are adapted."""
    edit(folder, **changes)
    merged = load_adapter(load_model(base), folder).merge_and_unload().state_dict()
    expected = load_adapter(load_model(base), sound).merge_and_unload().state_dict()
    assert all(torch.equal(merged[name], weight) for name, weight in expected.items())
