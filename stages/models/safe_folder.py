"""What a model folder may not hold: code of its own, and pickled weights, which run code when they are read.

transformers asks on the terminal whether to run such code, and a "y" may stand there for something else. So it is
refused by what the files say, before anything of the folder is loaded, and by argument besides (`loading.py`).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.hardware import model_shape
from stages.store.sealed_json import text_of

# Files in JSON that nobody reads options from: the vocabulary may be tens of megabytes.
WITHOUT_SETTINGS = ("tokenizer.json", "vocab.json")
CODE_KEYS = ("auto_map", "auto_mapping")
KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
NO_CODE = "It would run code of its own, which Plumbline never does: take a model of a kind that transformers knows."
ONLY_SAFETENSORS = (
    "Only *.safetensors inside the folder are read, since other formats can run code: convert the weights."
)


def validate_folder(folder: Path, adapter: bool = False) -> None:
    """Raise UserError, naming file and key, where the folder of a model, or of an adapter, asks for code of its own,
    or for weights other than safetensors in it, or where config.json has values that no model has."""
    if (folder / "custom_generate").exists():
        raise UserError(f"{folder / 'custom_generate'}: the model brings its own way to generate. {NO_CODE}")
    for file in sorted(folder.glob("*.json")):
        if file.name not in WITHOUT_SETTINGS:
            for key, value in settings_at_any_depth(read_json(file)):
                validate_setting(file, key, value)
    if (folder / "config.json").exists():
        model_shape.read_config(folder)
    # transformers would load what an adapter names, from anywhere.
    if not adapter and (folder / "adapter_config.json").exists():
        raise UserError(f"{folder / 'adapter_config.json'}: an adapter, where a model is wanted. Merge it first.")


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
    """Whether a name is that of a file of safetensors, or of an index of such, beside the file that names it."""
    plain = isinstance(name, str) and name == Path(name).name
    return plain and name.endswith((".safetensors", ".safetensors.index.json"))


def read_json(file: Path) -> Any:
    try:
        return json.loads(text_of(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON: {str(error)[:200]}") from error


def settings_at_any_depth(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth: a part of a model (`text_config`) has settings of its own."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
