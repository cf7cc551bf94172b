"""Refuse model folders that contain code, or pickled weights, which run code when they are read.

transformers asks on the terminal whether to run such code, and a "y" on standard input may be for another question.
So the files are checked before anything is loaded from the folder; `loading.py` also forbids code by an argument."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.hardware import model_shape
from stages.store.sealed_json import read_text
from stages.store.source_files import ADAPTER_CONFIG

# These JSON files contain no settings, and may be tens of megabytes long.
WITHOUT_SETTINGS = ("tokenizer.json", "vocab.json")
CODE_KEYS = ("auto_map", "auto_mapping")
KERNEL_KEYS = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)
NO_CODE = (
    "Plumbline never runs a model's own code: take a model of a type that transformers supports."
)
ONLY_SAFETENSORS = (
    "Other formats can run code: convert the weights to *.safetensors in the same folder."
)


def validate_folder(folder: Path, adapter: bool = False) -> None:
    """Raise UserError, naming file and key, if the folder of a model or adapter asks for code, or for weights that are
    not safetensors in the folder, if config.json has values that no model has, or if a file is a pointer."""
    model_shape.refuse_pointers(folder)
    if (folder / "custom_generate").exists():
        raise UserError(
            f"{folder / 'custom_generate'}: the model contains code for generation. {NO_CODE}"
        )
    for file in sorted(folder.glob("*.json")):
        if file.name not in WITHOUT_SETTINGS:
            for key, value in settings_at_any_depth(read_json(file)):
                validate_setting(file, key, value)
    if (folder / "config.json").exists():
        model_shape.read_config(folder)
    # transformers would load the model that an adapter names, from anywhere.
    if not adapter and (folder / ADAPTER_CONFIG).exists():
        raise UserError(
            f"{folder / ADAPTER_CONFIG}: the folder is an adapter, not a model. Name the model below it, and the "
            "adapter: model.path=BASE model.adapter=FOLDER."
        )


def validate_setting(file: Path, key: str, value: Any) -> None:
    if key in CODE_KEYS and value:
        raise UserError(f"{file}: {key} names code in the folder or on the hub. {NO_CODE}")
    if key in KERNEL_KEYS and "/" in str(value):
        raise UserError(f"{file}: {key}={value} names code on the hub. {NO_CODE}")
    if key == "transformers_weights" or (key == "weight_map" and file.name.endswith(".index.json")):
        for name in value.values() if isinstance(value, dict) else [value]:
            if not names_safetensors(name):
                raise UserError(f"{file}: {key} names {name!s:.100}. {ONLY_SAFETENSORS}")


def names_safetensors(name: Any) -> bool:
    """Return True if `name` is a safetensors file, or an index of them, in the same folder."""
    plain = isinstance(name, str) and name == Path(name).name
    return plain and name.endswith((".safetensors", ".safetensors.index.json"))


def read_json(file: Path) -> Any:
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON: {str(error)[:200]}") from error


def settings_at_any_depth(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at any depth: parts of a model (`text_config`) have settings too."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
