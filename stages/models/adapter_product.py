"""The change of a layer's weight by an adapter, and the names of the tensors that make it."""

from torch import Tensor

from stages.models.adapter_folder import Adapter

PREFIX = "base_model.model."
MAGNITUDE = "lora_magnitude_vector"


def magnitude_names(module: str) -> list[str]:
    """Return the names that a layer's magnitudes of DoRA may have."""
    name = f"{PREFIX}{module}.{MAGNITUDE}"
    return [name, f"{name}.weight"]


def weight_change(
    adapter: Adapter,
    module: str,
    first: Tensor,
    second: Tensor,
    weight: Tensor,
    magnitude: Tensor | None,
) -> Tensor:
    """Return what an adapter adds to a layer's weight: alpha / r · BA (arXiv:2106.09685). With `magnitude`, each output
    of the sum has a length of its own (DoRA, arXiv:2402.09353).

    Args:
        first: A, (rank, inputs); `second`: B, (outputs, rank).
        weight: (outputs, inputs); (inputs, outputs) in a layer that stores it so, and in an embedding.
        magnitude: the lengths, of `outputs` elements, or None."""
    product = second @ first * adapter.scale_of(module)
    is_turned = adapter.config.get("fan_in_fan_out") or product.shape != weight.shape
    if magnitude is not None:
        old = weight.T if is_turned else weight
        merged = old + product
        lengths = merged.norm(dim=1, keepdim=True).clamp(min=1e-30)
        product = magnitude.reshape(-1, 1) * merged / lengths - old
    return product.T if is_turned else product
