"""The change of weights that an adapter makes, layer by layer, beside the change that a folder of weights shows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stages.evaluation.stored_tensors import StoredTensors, spread
from stages.extras.examine.folders.adapter_layers import layer_update
from stages.models.adapter_folder import ADAPTER_WEIGHTS, read_adapter

COMPARED = 24  # layers of an adapter, at most
SAME = 0.05  # of the length of an adapter's change: by so much arithmetic moves merged weights
ROUNDED = 1.5  # times the rounding of a matrix that was merged and saved in bf16


@dataclass(frozen=True)
class LayerChange:
    """The change of a layer by its adapter beside the change of its weights from the start's. `own`, `moved`: their
    squared lengths, and `product` their inner product. `rounding`: how far the type of the weights rounds them, by the
    length of the adapter's change."""

    own: float
    moved: float
    product: float
    rounding: float

    @property
    def times(self) -> float:
        """How many times the weights hold the adapter's change: the projection on it."""
        return self.product / max(self.own, 1e-30)

    def holds(self, times: float) -> bool:
        """Return whether the weights are the start's with so many times the adapter's change."""
        gap = self.moved - 2 * times * self.product + times**2 * self.own
        allowed = SAME * max(1.0, abs(times)) + ROUNDED * self.rounding
        return gap <= allowed**2 * self.own

    def below_adapter(self) -> "LayerChange":
        """Return the change of the weights that the adapter stands on: without the adapter's own."""
        moved = self.moved - 2 * self.product + self.own
        return replace(self, moved=moved, product=self.product - self.own)


def layer_changes(
    folder: Path, before: StoredTensors, after: StoredTensors
) -> Iterator[LayerChange]:
    """Yield the changes of the layers that an adapter adapts and both models have, at most COMPARED."""
    adapter = read_adapter(folder)
    factors = StoredTensors([folder / ADAPTER_WEIGHTS])
    modules = [module for module, names in adapter.factors.items() if "lora_A" in names]
    for module in spread(modules, COMPARED):
        name = f"{module}.weight"
        if name not in before or name not in after:
            continue
        old = before.matrix(name)
        by_adapter = layer_update(adapter, factors, module, old)
        if by_adapter is None:
            continue
        new = after.matrix(name)
        own, moved = by_adapter.double(), (new - old).double()
        yield LayerChange(
            own=float(own.square().sum()),
            moved=float(moved.square().sum()),
            product=float((own * moved).sum()),
            rounding=rounding_of(old, new, by_adapter),
        )


def rounding_of(old: torch.Tensor, new: torch.Tensor, change: torch.Tensor) -> float:
    """Return how far bf16 rounds a matrix, by the length of a change; 0 if the new one is not rounded so."""
    if not torch.equal(new, new.bfloat16().float()):
        return 0.0
    merged = old + change
    gap = (merged - merged.bfloat16().float()).norm()
    return float(gap / change.norm().clamp(min=1e-30))
