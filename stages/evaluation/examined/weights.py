"""Faults of weights: nothing was trained, it is another model's training, an adapter counts twice, rows are untrained."""

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import safe_open

from stages.evaluation.examined.sides import Examined
from stages.models.loading import locate_output_embedding
from stages.store.sealed_json import load_json, require_keys
from stages.store.source_files import ADAPTER_CONFIG

COMPARED = 12  # matrices of a model whose directions are compared
ALIKE = 0.5  # the cosine of a matrix before and after, below which it is no continued training
SAME = 0.05  # of an adapter's own length: by so much rounding moves what it stands on
NEAR_MEAN = 0.1  # of the usual distance of a row from the mean row: a new row that was not trained
SAMPLED = 4096  # rows whose distance is usual


class Weights:
    """The tensors of a folder of safetensors, each read when it is asked for."""

    def __init__(self, folder: Path):
        self.files = dict[str, Path]()
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                self.files |= dict.fromkeys(tensors.keys(), file)

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self.files[name], framework="pt") as tensors:
            return tensors.get_tensor(name).float()  # type: ignore[no-any-return]


def shared_matrices(before: Weights, after: Weights) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the matrices of the same name and shape in both models."""
    for name in before.files.keys() & after.files.keys():
        old, new = before[name], after[name]
        if old.ndim == 2 and old.shape == new.shape:
            yield old, new


def not_whole(found: Examined) -> str:
    """Tensors that the model's class has no place for, or tokens without a row."""
    said = [warning for warning in found.after.warnings if warning not in found.before.warnings]
    return said[0].rstrip(".") if said else ""


def unchanged(found: Examined) -> str:
    pairs = shared_matrices(Weights(found.before.came), Weights(found.after.came))
    if any(not torch.equal(old, new) for old, new in pairs):
        return ""
    return f"its weights are those of {found.before.title}: nothing was trained, or what was is not here"


def started_elsewhere(found: Examined) -> str:
    """The reference of a preference loss is the model that the training started from, or under an adapter the model
    below it: if that is not `before`, its reference was not either."""
    if found.adapter:
        beside, _ = below_adapter(found)
        if beside > SAME and not merged_twice(found):
            return f"its adapter stands on other weights than {found.before.title}'s, so its reference was another model"
        return ""
    before, after = Weights(found.before.came), Weights(found.after.came)
    names = sorted(name for name in before.files if "layers" in name and name in after.files)
    chosen = names[:: max(1, len(names) // COMPARED)]
    cosines = [
        float(torch.nn.functional.cosine_similarity(before[n].flatten(), after[n].flatten(), 0))
        for n in chosen
        if before[n].shape == after[n].shape
    ]
    if cosines and median(cosines) >= ALIKE:
        return ""
    return f"its weights are no training of {found.before.title}: they point elsewhere (a cosine of {median(cosines or [0.0]):.2f})"


def merged_twice(found: Examined) -> str:
    beside, doubled = below_adapter(found) if found.adapter else (0.0, 1.0)
    if beside > SAME and doubled < SAME:
        return "its adapter is merged into the weights that it stands on already, so that it counts twice"
    return ""


def below_adapter(found: Examined) -> tuple[float, float]:
    """Return how far the weights below an adapter are from `before`, and how far from `before` with the adapter merged,
    both by the length of the adapter's own change."""
    assert found.adapter
    config = load_json(found.adapter / ADAPTER_CONFIG, require_keys("r", "lora_alpha"))
    before, after, adapter = map(Weights, (found.before.came, found.after.came, found.adapter))
    moved, doubled, own = 0.0, 0.0, 0.0
    for name in [name for name in adapter.files if ".lora_A." in name][:COMPARED]:
        module = name.split(".lora_A.")[0].removeprefix("base_model.model.")
        weight = f"{module}.weight"
        if not {weight} <= before.files.keys() & after.files.keys():
            continue
        change = adapter[name.replace(".lora_A.", ".lora_B.")] @ adapter[name] * scale_of(config)
        below = after[weight] - change - before[weight]
        moved += float(below.square().sum())
        doubled += float((below - change).square().sum())
        own += float(change.square().sum())
    return math.sqrt(moved / max(own, 1e-30)), math.sqrt(doubled / max(own, 1e-30))


def scale_of(config: dict[str, Any]) -> float:
    """Return the factor of an adapter's product (arXiv:2106.09685; with `use_rslora` arXiv:2312.03732)."""
    rank = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    return float(config["lora_alpha"] / rank)


def rows_untrained(found: Examined) -> str:
    contract, place = found.after.contract, locate_output_embedding(found.after.came)
    if place is None:
        return ""
    file, name = place
    rows = Weights(file.parent)[name]
    mean = rows.mean(0)
    usual = float((rows[:SAMPLED] - mean).norm(dim=1).median())
    ids = {i for turns in found.conversations[:3] for i in contract.prompt(turns[:-1])}
    used = sorted(i for i in {*ids, contract.stop_ids[0]} & contract.added if i < len(rows))
    untrained = [i for i in used if float((rows[i] - mean).norm()) < NEAR_MEAN * usual]
    if not untrained:
        return ""
    tokens = ", ".join(map(str, contract.tokenizer.convert_ids_to_tokens(untrained)))
    return f"the rows of {tokens} in its embedding are the mean of the others: they were added, and never trained"
