"""The change of weights that an adapter makes, layer by layer, beside the change that a folder of weights shows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.evaluation.examined.stored_weights import StoredWeights
from stages.models.adapter_folder import ADAPTER_WEIGHTS, Adapter, read_adapter
from stages.models.adapter_product import PREFIX, magnitude_names, weight_change

COMPARED = 24  # layers of an adapter, at most
SAME = 0.05  # of the length of an adapter's change: by so much arithmetic moves merged weights
ROUNDED = 1.5  # times the rounding of a matrix that was merged and saved in bf16


@dataclass
class LayerChange:
    """The change of a layer by its adapter, and the change of its weights from the start's. `rounding`: how far their
    type rounds the weights, by the length of the adapter's change."""

    module: str
    by_adapter: torch.Tensor
    of_weights: torch.Tensor
    rounding: float = 0.0

    @property
    def times(self) -> float:
        """How many times the weights hold the adapter's change: the projection on it."""
        length = float(self.by_adapter.square().sum())
        return float((self.of_weights * self.by_adapter).sum()) / max(length, 1e-30)

    def holds(self, times: float) -> bool:
        """Return whether the weights are the start's with so many times the adapter's change."""
        gap = (self.of_weights - times * self.by_adapter).norm()
        allowed = SAME * max(1.0, abs(times)) + ROUNDED * self.rounding
        return float(gap) <= allowed * float(self.by_adapter.norm())


def layer_changes(
    folder: Path, before: StoredWeights, after: StoredWeights
) -> Iterator[LayerChange]:
    """Yield the changes of the layers that an adapter adapts and both models have, at most COMPARED."""
    adapter = read_adapter(folder)
    factors = StoredWeights.of_file(folder / ADAPTER_WEIGHTS)
    modules = [module for module, names in adapter.factors.items() if "lora_A" in names]
    step = max(1, len(modules) // COMPARED)
    for module in modules[::step]:
        weight = f"{module}.weight"
        if weight not in before or weight not in after:
            continue
        old = before[weight]
        change = change_of(adapter, factors, module, old)
        if change is None:
            continue
        new = after[weight]
        yield LayerChange(module, change, new - old, rounding_of(old, new, change))


def rounding_of(old: torch.Tensor, new: torch.Tensor, change: torch.Tensor) -> float:
    """Return how far bf16 rounds a matrix, by the length of a change; 0 if the new one is not rounded so."""
    if not torch.equal(new, new.bfloat16().float()):
        return 0.0
    merged = old + change
    gap = (merged - merged.bfloat16().float()).norm()
    return float(gap / change.norm().clamp(min=1e-30))


def change_of(
    adapter: Adapter, factors: StoredWeights, module: str, weight: torch.Tensor
) -> torch.Tensor | None:
    """Return the change of a layer's weight by its adapter; None for a layer that is not a matrix, or of another shape."""
    first, second = (factors[f"{PREFIX}{module}.lora_{letter}.weight"] for letter in "AB")
    sizes = [second.shape[0], first.shape[-1]]
    if first.ndim != 2 or second.ndim != 2 or sorted(sizes) != sorted(weight.shape):
        return None
    magnitude = None
    for name in magnitude_names(module):
        if name in factors:
            magnitude = factors[name]
    return weight_change(adapter, module, first, second, weight, magnitude)
