"""A model in training, as one that completes prompts."""

import copy

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from stages.config.choices import Precision, Weights
from stages.models.loading import sampled_as


def twin(model: PreTrainedModel | PeftModel, precision: Precision) -> PreTrainedModel:
    """A second model, in eval mode, with what the first has learnt so far. It shares the weights in the precision that
    they are held in, and has rounded copies of the others, as a training forward under autocast has. An adapter stays
    over the weights that it is trained on.

    The first is left as it is: how it attends and reads packed rows, its hooks, its settings of generation. Whatever a
    sampler makes of the twin ends with the twin.
    """
    dtype = torch.bfloat16 if sampled_as(precision) is Weights.bf16 else torch.float32
    shared = {id(p): of_twin(p, dtype) for p in model.parameters()}
    made = copy.deepcopy(model, shared)
    for module in made.modules():
        vars(module).pop("forward", None)  # a trainer's: it holds on to the first model's layers
    return (made.get_base_model() if isinstance(made, PeftModel) else made).eval()  # type: ignore[no-any-return]


def of_twin(parameter: torch.nn.Parameter, dtype: torch.dtype) -> torch.nn.Parameter:
    """The same values without a gradient; weights of 4 bits as they are."""
    if not parameter.is_floating_point():
        return parameter
    return torch.nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
