"""Linear layers for inference on a CPU, whose weights are laid out once as oneDNN multiplies them.

PyTorch lays a weight out anew for every product. With thousands of rows that is nothing; with the few hundred of a
decoding step it is a tenth of the product in fp32 and a third in bf16.
"""

import torch
from transformers import PreTrainedModel


class Prepacked(torch.nn.Module):
    """A linear layer that cannot be trained. `rows`: how many it mostly multiplies at once; any number may come."""

    def __init__(self, linear: torch.nn.Linear, rows: int):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out)."""
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")


@torch.inference_mode()
def prepack(model: PreTrainedModel, rows: int) -> PreTrainedModel:
    """Give the model, in place, prepacked linear layers, one after the other: no more memory is needed than for the
    largest of them, and for a head that is tied, whose embedding stays. Left as they are: those on other devices, of
    other types (4 bits), all of them where PyTorch has no oneDNN, and in bf16 where this CPU only emulates it."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return model
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    dtypes = (torch.float32, torch.bfloat16) if bf16 else (torch.float32,)
    plain = [
        name
        for name, layer in model.named_modules(remove_duplicate=False)
        if type(layer) is torch.nn.Linear and layer.weight.device.type == "cpu" and layer.weight.dtype in dtypes
    ]
    for name in plain:  # not the layers: whoever has these keeps their weights
        model.set_submodule(name, Prepacked(model.get_submodule(name), rows))
    return model
