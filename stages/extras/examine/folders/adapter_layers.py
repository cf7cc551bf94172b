"""What an adapter adds to the weight of one layer, from the tensors in its files."""

from torch import Tensor

from stages.evaluation.stored_tensors import StoredTensors
from stages.models.adapter_folder import Adapter
from stages.models.adapter_product import PREFIX, magnitude_names, weight_change


def layer_update(
    adapter: Adapter, tensors: StoredTensors, module: str, weight: Tensor
) -> Tensor | None:
    """Return what an adapter adds to the weight of a layer; None if its matrices do not fit the weight."""
    first, second = factor_matrices(tensors, module)
    if sorted([second.shape[0], first.shape[-1]]) != sorted(weight.shape):
        return None
    magnitude = None
    for name in magnitude_names(module):
        if name in tensors:
            magnitude = tensors.matrix(name)
    return weight_change(adapter, module, first, second, weight, magnitude)


def factor_matrices(tensors: StoredTensors, module: str) -> list[Tensor]:
    """Return the matrices A and B of a layer."""
    matrices = list[Tensor]()
    for letter in "AB":
        names = [
            f"{PREFIX}{module}.lora_{letter}.weight",
            f"{PREFIX}{module}.lora_embedding_{letter}",
        ]
        [name] = [name for name in names if name in tensors]
        matrices.append(tensors.matrix(name))
    return matrices
