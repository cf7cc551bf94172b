"""Round the weights of a published model to bfloat16, which halves its folder, and measure what is left of an update.

A bfloat16 has eight significant bits: an update below 1/512 of a weight is rounded away. Training itself works on
float32, so only what is published is rounded, and the next stage starts from exactly that."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.models.loading import files_by_tensor, load_config, weight_files
from stages.models.safe_folder import read_json
from stages.store import safe_files

INDEX = "model.safetensors.index.json"  # of weights in several files


def is_rounded(model: Path) -> bool:
    """Return True if config.json says that the weights in a folder are bfloat16."""
    return bool(load_config(model).dtype == torch.bfloat16)


def round_model(model: Path) -> float:
    """Round the weights in a folder. Return the share of them that rounding changes."""
    changed = total = 0
    for _, exact, rounded in round_weights(model):
        changed += int((rounded != exact).sum())
        total += exact.numel()
    return changed / total


def round_update(model: Path, start: Path) -> float:
    """Round the weights in a folder, which were trained from those in the folder `start`. Return the share of the
    update that survives: of the weights that differ from `start`, the share that still differs after rounding.

    New rows of embeddings and weights that `start` lacks, such as a reward head, do not count. With `qlora`, the
    changes by 4-bit quantisation count as well."""
    changed = surviving = 0
    files = files_by_tensor(start)
    for name, exact, rounded in round_weights(model):
        if name not in files:
            continue
        with safe_open(files[name], framework="pt") as tensors:
            before = tensors.get_tensor(name).flatten()
        old = slice(len(before))  # new rows come last
        differs = exact.flatten()[old] != before
        changed += int(differs.sum())
        surviving += int((differs & (rounded.flatten()[old] != before)).sum())
    if not changed:
        return 1.0
    return surviving / changed


def round_weights(model: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Rewrite the weights in a folder file by file, and then its config. Yield the name of each weight, and its values
    before and after. A file may be a hard link: the other links keep the exact weights."""
    size = 0
    for file in weight_files(model):
        exact = load_file(file)
        rounded = dict(exact)
        for name, each in exact.items():
            if each.is_floating_point():
                rounded[name] = each.bfloat16()
            size += rounded[name].nbytes
        with safe_files.draft_of(file) as draft:
            save_file(rounded, draft, {"format": "pt"})
        for name, each in exact.items():
            yield name, each, rounded[name]
    config = read_json(model / "config.json")
    write_json(model / "config.json", config | {"dtype": "bfloat16"})
    index = model / INDEX
    if index.exists():
        content = read_json(index)
        content["metadata"]["total_size"] = size
        write_json(index, content)


def write_json(file: Path, content: dict[str, Any]) -> None:
    safe_files.write(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
