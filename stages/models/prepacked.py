"""Linear layers for inference on a CPU, whose weights are laid out once as oneDNN multiplies them.

PyTorch lays a weight out anew for every product. With thousands of rows that is nothing; with the few hundred of a
decoding step it is a tenth of the product in fp32 and a third in bf16.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

DTYPES = (torch.float32, torch.bfloat16)


class Prepacked(nn.Module):
    """A linear layer that cannot be trained. `rows`: how many it mostly multiplies at once; any number may come."""

    def __init__(self, linear: nn.Linear, rows: int):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out)."""
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")


@torch.inference_mode()
def prepack(model: PreTrainedModel, rows: int) -> PreTrainedModel:
    """Give the model, in place, prepacked linear layers, one after the other: no more memory is needed than for the
    largest of them. Left as they are: those on other devices, of other types (adapters, 4 bits), and all of them in
    bf16 where this CPU only emulates it."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return model
    dtypes = DTYPES if torch.ops.mkldnn._is_mkldnn_bf16_supported() else DTYPES[:1]
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype in dtypes:
                setattr(module, name, Prepacked(child, rows))
    return model
