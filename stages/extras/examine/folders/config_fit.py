"""Tensors in files beside those that config.json asks for."""

import torch
from transformers import AutoModelForCausalLM

from stages.evaluation.stored_tensors import StoredTensors
from stages.extras.examine.folders.difference import Difference, Level, value_text
from stages.extras.examine.folders.key_effects import row_difference
from stages.extras.examine.folders.model_folder import ModelFolder

FITS = "they fit"


def fit_differences(
    start: ModelFolder, model: ModelFolder, old: StoredTensors, new: StoredTensors
) -> list[Difference]:
    """Return the first tensor whose shape is another one than config.json asks for, or why no class takes the config. A
    class that unites or renames tensors as it loads them fits the start as little, and nothing is said of it."""
    text = misfit(model, new)
    if not text or misfit(start, old):
        return []
    return [row_difference("weights: and config.json", FITS, text, Level.breaks)]


def misfit(folder: ModelFolder, tensors: StoredTensors) -> str:
    """Return the first tensor with another shape than the config asks for, with both shapes, or the error of the model's
    class; '' if there is none."""
    if folder.config is None:
        return ""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(folder.config, trust_remote_code=False)
    except Exception as error:  # a class may raise any exception at values that it does not take
        return value_text(f"{type(error).__name__}: {error}")
    expected = model.state_dict()
    for name in sorted(expected.keys() & tensors.files.keys()):
        shape = list(expected[name].shape)
        if shape != tensors.shapes[name]:
            return f"{name} has {tensors.shapes[name]}, and config.json asks for {shape}"
    return ""
